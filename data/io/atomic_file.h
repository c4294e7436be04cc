#pragma once
/// Files that appear complete or not at all.

#include <cstddef>
#include <string>
#include <string_view>

#include "data/io/interrupt.h"

namespace rwkv {

/// Reserves a temporary name beside the target; `commit` makes it the target.
///
///   AtomicFile out("step-100.h5");
///   auto file = Hdf5File::create(out.temp_path());  ...  file.close();
///   out.commit();
///
/// Without commit (exception, early return) the destructor removes the temporary, and a file that
/// already had the target name stays as it was; so it is when SIGINT or SIGTERM ends a program
/// (data/io/interrupt.h). After SIGKILL a temporary can be left behind: `remove_stale_temporaries`
/// clears those.
class AtomicFile {
 public:
  /// Creates nothing yet except checking that the directory exists and that the name is that of a
  /// file or free (else IoError). If it is a symbolic link, the file it points to is the target.
  /// The temporary is called TARGET.PID-NUMBER.tmp.
  explicit AtomicFile(std::string target);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  const std::string& target() const { return target_; }
  const std::string& temp_path() const { return temp_; }

  /// Another name for the finished file, in the same folder.
  void rename_target(std::string target);
  /// fsync of the temporary, rename, fsync of the directory. The writer must have closed the file.
  /// Throws IoError; the temporary is then removed and the target untouched (unless the very last
  /// fsync of the directory failed: then the new file is in place but may not survive a crash).
  void commit();

 private:
  std::string target_, temp_;
  Unfinished unfinished_;
  bool done_ = false;
};

/// Makes the folder that a file shall go to, and removes it again if nothing came into it.
class NewFolder {
 public:
  /// A folder that is there already is left alone; one that cannot be made shows when the file is
  /// written.
  explicit NewFolder(const std::string& file);
  ~NewFolder();
  NewFolder(const NewFolder&) = delete;
  NewFolder& operator=(const NewFolder&) = delete;

 private:
  std::string path_;  ///< empty: there is nothing to remove
  Unfinished unfinished_;
};

/// Writes a whole small file by way of AtomicFile.
void write_file_atomic(const std::string& path, std::string_view content);

/// Whether two names are of one file, through links of either kind; of files that are not there
/// yet, whether they would be.
bool same_file(const std::string& a, const std::string& b);

/// Reads a whole file. Throws IoError that says what is wrong with the path.
std::string read_file(const std::string& path);

/// Removes temporaries of `target` whose process no longer runs on this machine; returns how many.
/// Only for targets that one process at a time writes.
size_t remove_stale_temporaries(const std::string& target);

}  // namespace rwkv
