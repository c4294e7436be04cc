#!/bin/sh
# Reads the #include lines of every source and fails on an edge between folders that the layers do
# not allow, and on third-party headers outside the files that may use them.
# The two tables below are the rule; docs/architecture.md explains it.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

list_files | grep -E '\.(h|hpp|cuh|c|cc|cpp|cu)$' | awk '
BEGIN {
  # A layer and the folder it stands for; the longest matching folder wins.
  add_layer("core", "kernels/core/");       add_layer("ops", "kernels/ops/")
  add_layer("kernels", "kernels/");         add_layer("ref", "kernels/ref/")
  add_layer("cases", "kernels/cases/");     add_layer("data", "data/")
  add_layer("data_io", "data/io/");         add_layer("tokenizer", "data/tokenizer/")
  add_layer("graph", "model/graph/");       add_layer("model", "model/")
  add_layer("trainer", "trainer/");         add_layer("inference", "inference/")
  add_layer("tools", "tools/");             add_layer("tests", "tests/")

  # What each layer may include besides itself. ref and cases serve tests and benchmarks only.
  allow("core", "")
  allow("ops", "core kernels")
  allow("kernels", "core ops")
  allow("ref", "core ops kernels")
  allow("cases", "core ops kernels ref")
  allow("data", "core data_io tokenizer")
  allow("data_io", "core data tokenizer")
  allow("tokenizer", "core data data_io")
  allow("graph", "core ops")
  allow("model", "core ops kernels graph data_io")
  allow("trainer", "core ops kernels data data_io tokenizer graph model")
  # A checkpoint carries its vocabulary, so inference reads files as the model does: through data/io.
  allow("inference", "core ops kernels data_io tokenizer graph model")
  allow("tools", "core ops kernels ref cases data data_io tokenizer graph model trainer inference")
  allow("tests", "core ops kernels ref cases data data_io tokenizer graph model trainer inference tools")

  # Third-party headers and where they may stand: patterns of header and of file.
  confine("^(hdf5|H5[A-Za-z]*)\\.h", "^data/io/hdf5_[a-z]+\\.cpp$", "data/io/hdf5_*.cpp")
  confine("^(unsupported/)?Eigen/",
          "^kernels/(cpu/|wkv/cpu/|core/gemm_cpu\\.cpp$)",
          "kernels/cpu, kernels/wkv/cpu and kernels/core/gemm_cpu.cpp")
  confine("^nlohmann/", "^(data|model|trainer|inference|tools|tests)/.*\\.cpp$",
          ".cpp files outside kernels and model/graph", "^model/graph/")
  confine("^CLI/", "^tools/", "tools")
  confine("^httplib\\.h", "^(inference/server|tools/bench|tests/integration)/",
          "inference/server, tools/bench and tests/integration")
  confine("^(nccl|mpi)\\.h", "^trainer/comm/", "trainer/comm")
  confine("^(zstd|zlib|lzma)\\.h", "^data/", "data")
  confine("^(pcre2|utf8proc)\\.h", "^data/tokenizer/gpt2_split\\.cpp$", "data/tokenizer/gpt2_split.cpp")
  confine("^omp\\.h", "^kernels/core/", "kernels/core")
  confine("^(immintrin|x86intrin|arm_neon|cpuid)\\.h", "^kernels/", "kernels")
  confine("^(cuda|cublas|cub/|cooperative_groups|mma\\.h|nvtx3/|curand|thrust/)",
          "^(kernels/(core|cuda|wkv/cuda)|trainer/comm|tools/gpu)/",
          "kernels/core, kernels/cuda, kernels/wkv/cuda, trainer/comm and tools/gpu")
  confine("^g(test|mock)/", "^tests/", "tests")

  # Operating system headers, free for all.
  n = split("unistd fcntl signal sched pthread dirent poll errno dlfcn termios pty netdb ucontext " \
            "execinfo spawn", names, " ")
  for (i = 1; i <= n; i++) system_header[names[i] ".h"] = 1
}
function add_layer(name, folder) { folder_of[name] = folder; order[++layers] = name }
function allow(from, list, i, n, parts) {
  n = split(list, parts, " ")
  allowed[from, from] = 1
  for (i = 1; i <= n; i++) allowed[from, parts[i]] = 1
}
function confine(header, files, text, except) {
  ++confined; header_re[confined] = header; file_re[confined] = files; where[confined] = text
  except_re[confined] = except == "" ? "^$" : except
}
function layer(path, i, best) {
  best = ""
  for (i = 1; i <= layers; i++)
    if (index(path, folder_of[order[i]]) == 1 &&
        (best == "" || length(folder_of[order[i]]) > length(folder_of[best]))) best = order[i]
  return best
}
function bad(text) { print file ":" line_number ": " text; ++violations }
function exists(path, line, result) {
  if (!(path in known)) { result = (getline line < path); close(path); known[path] = result >= 0 }
  return known[path]
}
function check_ours(header, from, to) {
  if (header ~ /^generated\//) return
  if (!exists(header)) {
    bad("\"" header "\" is not a file relative to the root of the repository"); return
  }
  from = layer(file); to = layer(header)
  if (from == "" || to == "") {
    bad("\"" header "\": " (from == "" ? file : header) " is in no known layer"); return
  }
  if (!((from, to) in allowed))
    bad("\"" header "\": " folder_of[from] " must not include " folder_of[to])
}
function check_other(header, i) {
  for (i = 1; i <= confined; i++)
    if (header ~ header_re[i]) {
      if (file !~ file_re[i] || file ~ except_re[i])
        bad("<" header "> belongs in " where[i] " only")
      return
    }
  if (header ~ /^[a-z0-9_]+$/ || header ~ /^(sys|linux|netinet|arpa)\// || header in system_header)
    return
  bad("<" header "> is not known: add it to the table of tools/lint/layering.sh with its place")
}
{
  file = $0; line_number = 0; ++files
  if (layer(file) == "") { print file ": is in no known layer"; ++violations }
  while ((getline line < file) > 0) {
    ++line_number
    if (line !~ /^[ \t]*#[ \t]*include[ \t]*[<"]/) continue
    ++includes
    quoted = line ~ /^[ \t]*#[ \t]*include[ \t]*"/
    header = line
    sub(/^[ \t]*#[ \t]*include[ \t]*[<"]/, "", header); sub(/[>"].*$/, "", header)
    # A third-party header is judged by its name, however it is quoted.
    ours = quoted && header !~ /^(hdf5\.h|H5|Eigen\/|nlohmann\/|CLI\/|nccl\.h|mpi\.h)/
    if (ours) check_ours(header); else check_other(header)
  }
  close(file)
}
END {
  if (files == 0) { print "layering: no sources found"; exit 2 }
  printf "layering: %d files, %d includes, %d violations\n", files, includes, violations
  exit violations > 0
}'
