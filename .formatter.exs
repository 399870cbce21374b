[
  inputs: [
    "{mix,.formatter}.exs",
    "native/*.exs",
    "native/build/*.exs",
    "{bench,examples,lib,test}/**/*.{ex,exs}"
  ],
  line_length: 110
]
