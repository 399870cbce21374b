defmodule PartitionedBuffer.Options.Preset do
  @moduledoc false
  # The option `:preset`: values of other options, which these replace when they are given.

  @presets [
    database: [
      processing_interval_ms: 1_000,
      processing_batch_size: 1_000,
      partitions: 2,
      max_size: 100_000,
      max_attempts: 100,
      drain_timeout_ms: 25_000
    ],
    api: [
      processing_interval_ms: 1_000,
      processing_batch_size: 100,
      partitions: 1,
      max_size: 10_000,
      full_timeout_ms: 1_000,
      max_attempts: 20,
      retry_backoff_ms: {1_000, 60_000},
      processing_timeout_ms: 30_000,
      drain_timeout_ms: 25_000
    ],
    metrics: [
      processing_interval_ms: 10_000,
      processing_batch_size: 1_000,
      partitions: 1,
      max_size: 100_000,
      when_full: :drop_newest,
      full_timeout_ms: 0,
      max_attempts: 3,
      drain_timeout_ms: 5_000
    ]
  ]

  @doc """
  The presets, with their options.
  """
  @spec all() :: keyword(keyword())
  def all, do: @presets

  @doc """
  Start options with those of their preset, which is valid.
  """
  @spec apply_to(keyword()) :: keyword()
  def apply_to(given) do
    {preset, given} = Keyword.pop(given, :preset)
    if preset, do: Keyword.merge(@presets[preset], given), else: given
  end
end
