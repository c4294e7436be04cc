# Shared by the lints; sourced, not run. Every lint is called as `NAME.sh [ROOT]`, prints one line
# per violation (`file:line: what is wrong`) and a summary, and exits with
#   0 nothing found   1 violations   2 the lint itself could not run   77 skipped, with the reason
# A lint that finds nothing to read exits with 2: a check of nothing must not pass.

root=${1:-$(dirname "$0")/../..}
cd "$root" || exit 2

# Files of the project, relative to the root, one per line: in a git work tree what is tracked or
# would be added, elsewhere (an unpacked archive) everything outside build and run folders.
list_files() {
  if [ -e .git ] && git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
    git ls-files --cached --others --exclude-standard | while IFS= read -r file; do
      if [ -f "$file" ]; then printf '%s\n' "$file"; fi  # not those just deleted
    done
  else
    find . -type f ! -path './build*' ! -path './runs/*' ! -path './out/*' ! -path './.git/*' |
      sed 's|^\./||'
  fi | LC_ALL=C sort
}
