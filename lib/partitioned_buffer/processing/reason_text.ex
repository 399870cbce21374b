defmodule PartitionedBuffer.Processing.ReasonText do
  @moduledoc false
  # The texts of failure reasons. A reason may hold keys and values in any place, and no text may
  # show them. A text shows the parts that rarely come from an entry: atoms, numbers, names of
  # structs, and messages of exceptions. It hides the messages made from terms, and the terms that
  # other messages quote. It is one line of valid UTF-8.

  # The most characters of a text and of a message in it.
  @max_text 300
  @max_message 200

  # A tuple or map in this many others is hidden.
  @max_depth 3

  # How many elements of a tuple, pairs of a map and causes in a list are shown, and how many are
  # looked at.
  @max_shown 8
  @max_seen 32

  # The exceptions whose messages are made from terms. The first are those of Elixir.
  @made_from_terms [
    ArgumentError,
    ArithmeticError,
    BadArityError,
    BadBooleanError,
    BadFunctionError,
    BadMapError,
    BadStructError,
    CaseClauseError,
    CondClauseError,
    MatchError,
    TryClauseError,
    UnicodeConversionError,
    WithClauseError,
    Enum.OutOfBoundsError,
    Inspect.Error,
    JSON.DecodeError,
    JSON.EncodeError,
    Protocol.UndefinedError,
    Regex.CompileError,
    URI.Error,
    Version.InvalidRequirementError,
    Version.InvalidVersionError,
    DBConnection.EncodeError,
    Decimal.Error,
    Ecto.CastError,
    Ecto.ChangeError,
    Ecto.Query.CastError,
    Jason.DecodeError,
    Jason.EncodeError,
    NimbleOptions.ValidationError,
    Poison.EncodeError,
    Poison.ParseError,
    Poison.SyntaxError
  ]

  # The errors of connections and files that a list shows.
  @causes [
    :closed,
    :eacces,
    :eaddrinuse,
    :eaddrnotavail,
    :econnaborted,
    :econnrefused,
    :econnreset,
    :ehostdown,
    :ehostunreach,
    :einval,
    :emfile,
    :enetdown,
    :enetunreach,
    :enfile,
    :enoent,
    :enospc,
    :enotconn,
    :epipe,
    :etimedout,
    :nxdomain,
    :timeout
  ]

  # Where a message begins to quote a term: `got: "x"`, `type uuid: "x"`, `Duplicate entry 'x'`.
  @quotes ~r/(?:[:=]|\b(?:entry|got|near|term|value))\s*(?=["'`%\[{]|<<|#\w)/u

  ## Reasons

  @doc """
  The failure reason of an exception, exit or throw.
  """
  @spec new(:error | :exit | :throw, any(), Exception.stacktrace()) :: any()
  def new(kind, reason, stacktrace \\ [])
  def new(:error, reason, _stacktrace) when is_exception(reason), do: reason
  def new(:error, reason, stacktrace), do: Exception.normalize(:error, reason, top(stacktrace))
  def new(:exit, reason, _stacktrace), do: {:exit, reason}
  def new(:throw, value, _stacktrace), do: {:throw, value}

  # The function that failed, without its arguments.
  defp top([{module, function, args, _location} | _rest]) when is_list(args),
    do: top([{module, function, if(List.improper?(args), do: 0, else: length(args)), []}])

  defp top([{module, function, arity, _location} | _rest])
       when is_atom(module) and is_atom(function) and is_integer(arity),
       do: [{module, function, arity, []}]

  defp top(_unknown), do: []

  ## Texts

  @doc """
  The text of a reason. `message` returns the message of an exception. The default is its field,
  which runs no code of the user.
  """
  @spec text(any(), (Exception.t() -> any())) :: String.t()
  def text(reason, message \\ &Map.get(&1, :message)),
    do: reason |> top_level(message) |> IO.iodata_to_binary() |> cut(@max_text)

  defp top_level({:exit, reason}, message), do: ["exit: ", exit_text(reason, 0, message)]
  defp top_level({:throw, value}, _message) when is_atom(value), do: ["throw: ", inspect(value)]
  defp top_level({:throw, _value}, _message), do: "throw"

  defp top_level({:bad_return, returned}, message),
    do: [
      "the processor returned ",
      show(returned, @max_depth - 1, message),
      ", which is invalid: it has unknown entries, a wrong time or a wrong size"
    ]

  defp top_level(reason, message) do
    if crash?(reason), do: exit_text(reason, 0, message), else: show(reason, 0, message)
  end

  # The exit reasons of a failed call, and of a process that raised or threw.
  defp exit_text({reason, {module, function, args}}, depth, message)
       when is_atom(module) and is_atom(function) and is_list(args) and depth < @max_depth do
    arity = if List.improper?(args), do: 0, else: length(args)
    [exit_text(reason, depth + 1, message), " in ", Exception.format_mfa(module, function, arity)]
  end

  defp exit_text({reason, stacktrace} = exit_reason, _depth, message) do
    case {crash?(exit_reason), reason} do
      {true, {:nocatch, value}} -> top_level({:throw, value}, message)
      {true, reason} -> show(new(:error, reason, stacktrace), 0, message)
      {false, _reason} -> show(exit_reason, @max_depth - 1, message)
    end
  end

  defp exit_text(reason, _depth, message), do: show(reason, @max_depth - 1, message)

  defp crash?({_reason, [{module, function, args, location} | _rest]}),
    do: is_atom(module) and is_atom(function) and (is_integer(args) or is_list(args)) and is_list(location)

  defp crash?(_reason), do: false

  ## Terms

  defp show(atom, _depth, _message) when is_atom(atom), do: inspect(atom)
  defp show(float, _depth, _message) when is_float(float), do: inspect(float)

  # The digits of a large integer take long.
  defp show(integer, _depth, _message) when is_integer(integer) and abs(integer) < 0x1_0000_0000_0000_0000,
    do: Integer.to_string(integer)

  defp show(binary, _depth, _message) when is_bitstring(binary), do: "\"…\""
  defp show(exception, _depth, message) when is_exception(exception), do: exception(exception, message)
  defp show(%struct{}, _depth, _message), do: ["%", inspect(struct), "{}"]
  defp show([], _depth, _message), do: "[]"
  defp show(list, _depth, _message) when is_list(list), do: list(list)
  defp show({}, _depth, _message), do: "{}"
  defp show(tuple, @max_depth, _message) when is_tuple(tuple), do: "{…}"
  defp show(map, @max_depth, _message) when is_map(map), do: "%{…}"

  defp show(tuple, depth, message) when is_tuple(tuple) do
    shown = for n <- 0..(min(tuple_size(tuple), @max_shown) - 1), do: show(elem(tuple, n), depth + 1, message)
    ["{", separated(shown, tuple_size(tuple)), "}"]
  end

  defp show(map, depth, message) when is_map(map) do
    pairs = map |> :maps.iterator() |> :maps.next() |> atom_pairs(@max_seen) |> Enum.sort_by(&elem(&1, 0))
    shown = for {key, value} <- Enum.take(pairs, @max_shown), do: [key, " ", show(value, depth + 1, message)]
    ["%{", separated(shown, map_size(map)), "}"]
  end

  defp show(_other, _depth, _message), do: "…"

  # A key that is not an atom may be one of the buffer.
  defp atom_pairs(:none, _left), do: []
  defp atom_pairs(_more, 0), do: []

  defp atom_pairs({key, value, rest}, left) when is_atom(key),
    do: [{Macro.inspect_atom(:key, key), value} | atom_pairs(:maps.next(rest), left - 1)]

  defp atom_pairs({_key, _value, rest}, left), do: atom_pairs(:maps.next(rest), left - 1)

  # The elements of a list may be entries, so it shows only errors of the network, as in
  # `{:failed_connect, [{:to_address, address}, {:inet, [:inet], :nxdomain}]}` of `:httpc`.
  defp list(list) do
    causes = list |> first(@max_seen) |> Enum.flat_map(&causes(&1, 0)) |> Enum.take(@max_shown)
    ["[", Enum.intersperse(causes ++ ["…"], ", "), "]"]
  end

  defp first([element | rest], left) when left > 0, do: [element | first(rest, left - 1)]
  defp first(_rest, _left), do: []

  defp causes(cause, _depth) when cause in @causes, do: [inspect(cause)]

  defp causes({:tls_alert, {alert, _text}}, _depth) when is_atom(alert),
    do: [["{:tls_alert, ", inspect(alert), "}"]]

  defp causes(tuple, depth) when is_tuple(tuple) and tuple_size(tuple) <= @max_shown and depth < @max_depth,
    do: tuple |> Tuple.to_list() |> Enum.flat_map(&causes(&1, depth + 1))

  defp causes(_other, _depth), do: []

  defp separated(shown, size),
    do: Enum.intersperse(if(length(shown) < size, do: shown ++ ["…"], else: shown), ", ")

  ## Exceptions

  defp exception(%name{} = exception, message) do
    case detail(exception, message) do
      nothing when nothing in [nil, ""] -> inspect(name)
      detail -> [inspect(name), ": ", detail]
    end
  end

  defp detail(%name{module: module, function: function, arity: arity}, _message)
       when name in [UndefinedFunctionError, FunctionClauseError] and is_atom(module) and is_atom(function) and
              is_integer(arity) and module != nil,
       do: Exception.format_mfa(module, function, arity)

  defp detail(%name{}, _message) when name in [UndefinedFunctionError, FunctionClauseError], do: nil
  defp detail(%KeyError{} = error, _message), do: atom_detail("key ", Map.get(error, :key))

  defp detail(%ErlangError{} = error, message),
    do: show(Map.get(error, :original), @max_depth - 1, message)

  defp detail(%name{}, _message) when name in @made_from_terms, do: nil

  defp detail(exception, message) do
    case message.(exception) do
      text when is_binary(text) -> text |> cut_bytes() |> first_line() |> hide_quoted() |> cut(@max_message)
      _no_text -> nil
    end
  catch
    _kind, _reason -> nil
  end

  defp atom_detail(label, atom) when is_atom(atom), do: label <> inspect(atom)
  defp atom_detail(_label, _key), do: nil

  # Characters have at most four bytes.
  defp cut_bytes(text) when byte_size(text) > 8 * @max_message,
    do: text |> :binary.part(0, 8 * @max_message) |> :binary.copy() |> valid()

  defp cut_bytes(text), do: valid(text)

  defp valid(text), do: for(chunk <- String.chunk(text, :valid), String.valid?(chunk), into: "", do: chunk)

  # The later lines of a message have the details: for example, the values of a row.
  defp first_line(text), do: text |> String.trim() |> String.split(~r/\R/u, parts: 2) |> hd()

  defp hide_quoted(text) do
    case Regex.run(@quotes, text, return: :index) do
      [{start, length}] -> binary_part(text, 0, start + length) <> "…"
      nil -> text
    end
  end

  defp cut(text, max) do
    text = String.replace(text, ~r/[\p{C}\p{Z}]+/u, " ")
    if String.length(text) > max, do: String.slice(text, 0, max - 1) <> "…", else: text
  end
end
