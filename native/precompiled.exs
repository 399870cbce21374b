# The libraries of a release: where they are, and for each target of Rust the file, its SHA-256, and the
# oldest glibc that it runs with. `native/precompile` prints this file for a release. Here it has no
# targets, because the libraries of a release would not have the changes of a checkout.
%{
  version: "0.5.0",
  url: "https://github.com/partitioned-buffer/partitioned_buffer/releases/download/v0.5.0",
  targets: %{}
}
