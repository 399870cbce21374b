defmodule PartitionedBuffer.Partition.Ending do
  @moduledoc false
  # Why a buffer ends, and what follows for its entries:
  #
  #   * The VM stops. This is the last chance of the entries, except with a journal.
  #   * The application calls `stop/4`, and says what becomes of leftovers.
  #   * A supervisor ends the buffer while the VM goes on. It most likely starts the buffer again, so
  #     the entries can wait for that, and the restart should not wait for a sink that is down.

  alias PartitionedBuffer.{Native, Options, Ref}

  @typedoc "What becomes of entries that a stop leaves. With a `:journal` the next VM has them."
  @type leftovers() :: :dead_letter | :keep | :lost | :journal

  @doc """
  Whether the VM stops.
  """
  @spec vm_stops?() :: boolean()
  def vm_stops?, do: match?({:stopping, _progress}, :init.get_status())

  @doc """
  Whether a stop retries failed entries.
  """
  @spec retries?(Ref.t()) :: boolean()
  def retries?(%Ref{run: run}), do: Native.stop(run) in [:dead_letter, :keep] or vm_stops?()

  @doc """
  What becomes of the entries that a stop leaves. `options` are nil if the run is over.
  """
  @spec leftovers(Native.run(), Options.t() | nil, vm_stops? :: boolean()) :: leftovers()
  def leftovers(_run, nil, _vm_stops?), do: :keep
  def leftovers(_run, %Options{journal: %{}}, true = _vm_stops?), do: :journal
  def leftovers(_run, %Options{dead_letter?: true}, true = _vm_stops?), do: :dead_letter
  def leftovers(_run, _options, true = _vm_stops?), do: :lost

  def leftovers(run, %Options{dead_letter?: dead_letter?}, _vm_stops?),
    do: if(dead_letter? and Native.stop(run) == :dead_letter, do: :dead_letter, else: :keep)
end
