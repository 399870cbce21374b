defmodule PartitionedBuffer.Guide do
  @moduledoc false
  # Runs the code of a guide or notebook.
  #
  # Every block fenced as `elixir` is run, in order, in one binding. A result may follow an
  # expression:
  #
  #     1 + 1
  #     #=> 2
  #     raise "no"
  #     #=> ** (RuntimeError) no
  #
  # The result is an expression as well, and has to be equal by `===`. It continues in lines that
  # begin with `#   `. Blocks not to be run are fenced as another language.

  defmodule Mismatch do
    @moduledoc false
    defexception [:message]
  end

  @root Path.expand("../..", __DIR__)

  @doc "The path of a file of this project."
  @spec path(String.t()) :: String.t()
  def path(file), do: Path.join(@root, file)

  @doc "The blocks of a file fenced as `elixir`, each with the number of its first line."
  @spec blocks(String.t()) :: [{pos_integer(), [String.t()]}]
  def blocks(file),
    do: file |> path() |> File.read!() |> String.split("\n") |> Enum.with_index(1) |> blocks([])

  defp blocks([], found), do: Enum.reverse(found)

  defp blocks([{"```elixir", number} | lines], found) do
    {block, [_fence | rest]} = Enum.split_while(lines, fn {line, _number} -> line != "```" end)
    blocks(rest, [{number + 1, Enum.map(block, &elem(&1, 0))} | found])
  end

  # Skips another block, whose end would look like the beginning of one.
  defp blocks([{"```" <> _language, _number} | lines], found) do
    [_fence | rest] = Enum.drop_while(lines, fn {line, _number} -> line != "```" end)
    blocks(rest, found)
  end

  defp blocks([_text | lines], found), do: blocks(lines, found)

  @doc "Runs blocks in the calling process, and returns the number of compared results."
  @spec run([{pos_integer(), [String.t()]}], String.t()) :: non_neg_integer()
  def run(blocks, file) do
    steps = Enum.flat_map(blocks, fn {number, lines} -> steps(lines, number, file) end)
    state = {[], Code.env_for_eval(file: path(file))}
    Enum.reduce(steps, state, &step(&1, &2, file))
    Enum.count(steps, fn {_code, expected} -> expected != nil end)
  end

  # Pieces of code and the result of their last expression, each with the number of its first line.
  defp steps([], _number, _file), do: []

  defp steps(lines, number, file) do
    {code, rest} = Enum.split_while(lines, &(not result?(&1)))
    {expected, rest} = Enum.split_while(rest, &(&1 =~ ~r/^#(=>|   )/))

    if misplaced = Enum.find(code, &(&1 =~ "#=>")),
      do: raise(Mismatch, "#{file}: a result that is not at the beginning of its line: #{misplaced}")

    expected_at = number + length(code)
    expected = if expected != [], do: {expected_at, Enum.map(expected, &String.slice(&1, 3..-1//1))}
    [{{number, code}, expected} | steps(rest, expected_at + length(elem(expected || {0, []}, 1)), file)]
  end

  defp result?(line), do: String.starts_with?(line, "#=>")

  defp step({code, nil}, state, file), do: code |> eval(state, file) |> elem(1)

  defp step({code, {number, [" ** " <> _ | _] = lines}}, state, file) do
    expected = lines |> Enum.map_join("\n", &String.trim/1) |> String.trim_leading("** ")

    raised =
      try do
        {:no_error, eval(code, state, file)}
      rescue
        error -> "(#{inspect(error.__struct__)}) #{Exception.message(error)}"
      end

    compare!(expected, raised, file, number)
    state
  end

  defp step({code, {number, lines}}, state, file) do
    {result, state} = eval(code, state, file)
    {expected, _state} = eval({number, lines}, state, file)
    compare!(expected, result, file, number)
    state
  end

  defp eval({number, lines}, {binding, env}, file) do
    quoted = lines |> Enum.join("\n") |> Code.string_to_quoted!(file: path(file), line: number)
    {result, binding, env} = Code.eval_quoted_with_env(quoted, binding, env)
    {result, {binding, env}}
  end

  defp compare!(expected, expected, _file, _number), do: :ok

  defp compare!(expected, result, file, number) do
    raise Mismatch, """
    #{file}:#{number} shows another result
      shown: #{inspect(expected, limit: :infinity)}
      is:    #{inspect(result, limit: :infinity)}
    """
  end
end
