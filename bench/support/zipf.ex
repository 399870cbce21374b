defmodule Bench.Zipf do
  @moduledoc "Random numbers from 1 to n: the number k is drawn with a probability proportional to 1 / k^exponent."

  @opaque t() :: tuple()

  @spec new(pos_integer(), float()) :: t()
  def new(n, exponent) do
    {sums, _sum} =
      Enum.map_reduce(1..n, 0.0, fn k, sum ->
        sum = sum + :math.pow(k, -exponent)
        {sum, sum}
      end)

    List.to_tuple(sums)
  end

  @spec next(t(), :rand.state()) :: {pos_integer(), :rand.state()}
  def next(sums, rand) do
    {uniform, rand} = :rand.uniform_s(rand)
    n = tuple_size(sums)
    {find(sums, uniform * elem(sums, n - 1), 1, n), rand}
  end

  # The first number whose sum is above the drawn one.
  defp find(_sums, _drawn, number, number), do: number

  defp find(sums, drawn, from, to) do
    middle = div(from + to, 2)

    if elem(sums, middle - 1) > drawn,
      do: find(sums, drawn, from, middle),
      else: find(sums, drawn, middle + 1, to)
  end
end
