defmodule PartitionedBuffer.Processing.Job do
  @moduledoc false
  # The work of one task: a flush, and everything needed to process it.

  alias PartitionedBuffer.{Native, Options, Ref}

  # `resumed?`: the flush is the rest of an earlier one, so newer entries may wait for its keys.
  # `waited?`: the task waited for another one, so the flush may also be a fresh one.
  # `reason`: the cause of the last task's death; with one, this task only settles the leftover
  # batch. `delivered` counts the entries that succeeded so far. `failed?` if entries failed, the
  # last of them for the reason `failure`. `tries?` if the task tried entries that failed before.
  @enforce_keys [:ref, :flush, :options, :functions]
  defstruct @enforce_keys ++
              [
                :trigger,
                :reason,
                :failure,
                resumed?: false,
                waited?: false,
                failed?: false,
                tries?: false,
                delivered: 0
              ]

  @type t() :: %__MODULE__{
          ref: Ref.t(),
          flush: Native.flush(),
          options: Options.t(),
          functions: Options.Functions.t(),
          trigger: :interval | :threshold | :full | :flush | :stop,
          reason: any(),
          failure: any(),
          resumed?: boolean(),
          waited?: boolean(),
          failed?: boolean(),
          tries?: boolean(),
          delivered: non_neg_integer()
        }

  @doc """
  The job of a task; nil if the run of the buffer is over.
  """
  @spec new(Native.flush(), Ref.t(), keyword()) :: t() | nil
  def new(flush, %Ref{} = ref, opts) do
    with %Options{} = options <- Ref.options(ref), %Options.Functions{} = functions <- Ref.functions(ref) do
      %__MODULE__{
        ref: ref,
        flush: flush,
        options: options,
        functions: functions,
        trigger: opts[:trigger],
        reason: opts[:reason],
        resumed?: Keyword.get(opts, :resumed?, false),
        waited?: Keyword.get(opts, :waited?, false)
      }
    end
  end

  @doc """
  Whether a task with this trigger calls the processor during a pause of its partition.
  """
  @spec in_pause?(atom()) :: boolean()
  def in_pause?(trigger), do: trigger in [:flush, :stop]

  @doc """
  Counts entries that succeeded.
  """
  @spec delivered(t(), non_neg_integer()) :: t()
  def delivered(%__MODULE__{} = job, count), do: %__MODULE__{job | delivered: job.delivered + count}

  @doc """
  Notes why entries failed.
  """
  @spec failed(t(), any()) :: t()
  def failed(%__MODULE__{} = job, reason), do: %__MODULE__{job | failed?: true, failure: reason}

  @doc """
  How the last task died, if that may be due to the size of its batch.
  """
  @spec death(t()) :: :killed | :timeout | nil
  def death(%__MODULE__{reason: reason}) when reason in [:killed, :timeout], do: reason
  def death(%__MODULE__{}), do: nil

  @doc """
  Calls a function of the options; an MFA gets the arguments before its own.
  """
  @spec call((... -> any()) | {module(), atom(), list()}, list()) :: any()
  def call(function, [argument]) when is_function(function), do: function.(argument)
  def call({module, function, args}, arguments), do: apply(module, function, arguments ++ args)
  def call(function, arguments), do: apply(function, arguments)
end
