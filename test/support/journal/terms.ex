defmodule PartitionedBuffer.JournalTerms do
  @moduledoc false
  # One term of each kind, by a name. The VM that writes them makes them, and the next one compares.

  @doc "Terms that mean the same in each VM."
  def lasting do
    %{
      atom: :atom,
      empty_atom: :"",
      unicode_atom: :"ключ-鍵-🔑",
      long_atom: String.to_atom(String.duplicate("ü", 255)),
      nil: nil,
      true: true,
      zero: 0,
      small: 255,
      negative: -1,
      int_32: 2 ** 31,
      small_limit: 2 ** 59 - 1,
      beyond_small: 2 ** 59,
      int_64: 2 ** 63 - 1,
      beyond_64: 2 ** 64,
      below_64: -(2 ** 64),
      large: 2 ** 3_000,
      negative_large: -(2 ** 3_000),
      float: 1.5,
      negative_zero: -0.0,
      least_float: 5.0e-324,
      greatest_float: 1.7976931348623157e308,
      empty_binary: "",
      binary: "binary",
      heap_binary: :binary.copy("x", 64),
      large_binary: :binary.copy("x", 65),
      sub_binary: binary_part(:binary.copy("0123456789", 100), 3, 500),
      bitstring: <<1::1>>,
      long_bitstring: <<0::size(1_003)>>,
      shifted_bitstring: tail(<<1::3, :binary.copy("y", 100)::binary>>),
      empty_list: [],
      list: [1, 2, 3],
      charlist: ~c"text",
      wide_charlist: [0x10FFFF, 256],
      improper_list: [1, 2 | 3],
      improper_of_binaries: ["a" | "b"],
      nested_list: [[[], [1]], [2]],
      empty_tuple: {},
      tuple: {1, :two, "three"},
      large_tuple: List.to_tuple(Enum.to_list(1..300)),
      empty_map: %{},
      map: %{1 => 1.0, 1.0 => 1, "a" => :a, {} => []},
      map_of_32: Map.new(1..32, &{&1, &1}),
      map_of_33: Map.new(1..33, &{&1, &1}),
      map_of_1_000: Map.new(1..1_000, &{{&1, "#{&1}"}, &1 / 1}),
      struct: Date.new!(2026, 12, 1),
      regex: Regex.source(~r/a+/),
      external_fun: &String.upcase/1,
      deep: Enum.reduce(1..100_000, [], fn _depth, deep -> [deep] end),
      deep_tuple: Enum.reduce(1..100_000, {}, fn _depth, deep -> {deep} end),
      megabyte: :binary.copy(<<7>>, 1_048_576),
      megabyte_of_list: Enum.to_list(1..60_000)
    }
  end

  defp tail(<<_::3, tail::bitstring>>), do: tail

  @doc "Terms of one VM, which come back as such terms."
  def passing do
    %{
      pid: self(),
      other_pid: spawn(fn -> :ok end),
      reference: make_ref(),
      alias: :erlang.alias(),
      port: hd(Port.list()),
      local_fun: fn x -> x end,
      closure: closure(2 ** 70)
    }
  end

  defp closure(x), do: fn -> x end
end
