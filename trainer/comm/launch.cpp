#include "trainer/comm/launch.h"

#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <vector>

#include "data/io/interrupt.h"
#include "data/io/sha256.h"
#include "trainer/comm/mpi_comm.h"
#include "trainer/comm/nccl_comm.h"
#include "trainer/comm/tcp_group.h"
#include "trainer/signals.h"

namespace rwkv {
namespace {

using Get = std::function<std::string(const char*)>;

int number(const Get& get, const char* name, int least, int most) {
  const std::string text = get(name);
  int n = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  RWKV_CHECK(error == std::errc() && end == text.data() + text.size() && n >= least && n <= most,
             ConfigError, "starting ranks: the variable ", name, " is '", text,
             "', expected a number from ", least, " to ", most);
  return n;
}

constexpr int kMostRanks = 65536;

void read_address(const Get& get, Launch& l) {
  l.address = get("MASTER_ADDR");
  if (!l.address.empty()) {
    RWKV_CHECK(!get("MASTER_PORT").empty(), ConfigError,
               "starting ranks: MASTER_ADDR is set, MASTER_PORT is not");
    l.port = number(get, "MASTER_PORT", 1, 65535);
    // torchrun's own store listens on that port.
    if (get("TORCHELASTIC_USE_AGENT_STORE") == "True") ++l.port;
    return;
  }
  const std::string id = get("NCCL_COMM_ID");
  const size_t colon = id.rfind(':');
  RWKV_CHECK(colon != std::string::npos && colon > 0, ConfigError,
             "starting ranks: ", l.description,
             " are set, but neither MASTER_ADDR and MASTER_PORT nor ",
             "NCCL_COMM_ID=HOST:PORT say where rank 0 is");
  l.address = id.substr(0, colon);
  if (l.address.size() > 2 && l.address.front() == '[')  // an IPv6 address
    l.address = l.address.substr(1, l.address.size() - 2);
  const std::string port = id.substr(colon + 1);
  l.port = number([&](const char*) { return port; }, "NCCL_COMM_ID (its port)", 1, 65535);
}

/// What tells this job from others that use the same port of the same machine. Numbers of steps
/// and restarts do not count: launchers give parts of one job different ones.
void read_job(const Get& get, Launch& l) {
  if (const std::string token = get("RWKV_JOB_TOKEN"); !token.empty()) {
    l.job = "token " + token;
    l.job_name = "with RWKV_JOB_TOKEN " + sha256_hex(token).substr(0, 6) + "...";
    return;
  }
  for (const char* name :
       {"SLURM_HET_JOB_ID", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", "PBS_JOBID", "LSB_JOBID"}) {
    const std::string value = get(name);
    if (value.empty() || !l.job.empty()) continue;
    l.job = str(name, "=", value, ", ");
  }
  l.job_name = l.job += str("port ", l.port);
}

Launch from_variables(const Get& get, const char* rank, const char* size, const char* local) {
  Launch l;
  l.kind = Launch::Kind::kTcp;
  l.description = str(rank, " and ", size);
  l.size = number(get, size, 1, kMostRanks);
  l.rank = number(get, rank, 0, l.size - 1);
  l.local_rank = get(local).empty() ? 0 : number(get, local, 0, l.size - 1);
  if (l.size == 1) return Launch();
  RWKV_CHECK(!get(local).empty(), ConfigError, "starting ranks: ", rank, " and ", size,
             " are set, ", local, " (which GPU of this machine) is not");
  read_address(get, l);
  read_job(get, l);
  return l;
}

/// For ranks of one parent: nobody else knows it.
std::string random_token() {
  unsigned char bytes[16];
  RWKV_CHECK(::getrandom(bytes, sizeof bytes, 0) == sizeof bytes, ConfigError,
             "starting local ranks: no random numbers: ", std::strerror(errno));
  return sha256_hex({reinterpret_cast<const char*>(bytes), sizeof bytes});
}

constexpr int kStopSignals[] = {SIGTERM, SIGINT, SIGHUP};

/// While it lives, signals that end a program wait.
class SignalsWait {
 public:
  SignalsWait() {
    sigset_t set;
    sigemptyset(&set);
    for (const int signal : kStopSignals) sigaddset(&set, signal);
    pthread_sigmask(SIG_BLOCK, &set, &before_);
  }
  ~SignalsWait() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsWait(const SignalsWait&) = delete;
  SignalsWait& operator=(const SignalsWait&) = delete;

 private:
  sigset_t before_;
};

// A signal handler can reach nothing but static storage.
volatile sig_atomic_t g_signal = 0;
void note_signal(int signal) {
  g_signal = signal;
}

/// Waits for all ranks; returns the exit code of the whole.
int watch_ranks(const std::vector<pid_t>& pids, const std::string& program) {
  std::vector<bool> alive(pids.size(), true);
  size_t left = pids.size();
  int code = 0, quiet_waits = 0;
  bool killed = false;
  const auto tell_all = [&](int signal) {
    for (size_t r = 0; r < pids.size(); ++r)
      if (alive[r]) ::kill(pids[r], signal);
  };
  while (left > 0) {
    if (const int signal = g_signal; signal != 0) {
      g_signal = 0;
      tell_all(signal);
    }
    int status = 0;
    const pid_t pid = ::waitpid(-1, &status, WNOHANG);
    if (pid <= 0) {
      ::usleep(50000);
      // The others end by themselves when a rank is gone; this is for those that cannot.
      constexpr int kPatience = 300;  // of 50 ms
      if (code != 0 && ++quiet_waits == kPatience) {
        killed = true;
        tell_all(SIGKILL);
      }
      continue;
    }
    for (size_t r = 0; r < pids.size(); ++r) {
      if (pids[r] != pid || !alive[r]) continue;
      alive[r] = false;
      --left;
      // Others may have noticed before this process did, and ended with a code of their own.
      if (WIFSIGNALED(status) && !killed)
        std::fprintf(stderr, "%s: error: rank %zu (process %d) was ended by signal %d (%s)\n",
                     program.c_str(), r, static_cast<int>(pid), WTERMSIG(status),
                     strsignal(WTERMSIG(status)));
      if (code == 0) code = WIFEXITED(status) ? WEXITSTATUS(status) : kExitLostRank;
    }
  }
  return code;
}

}  // namespace

Launch detect_launch(const Get& get) {
  // torchrun and operators set these two within SLURM or MPI jobs, whose variables are those of the
  // processes that started them. A single one says nothing about ranks that mpirun starts in it.
  if (!get("RANK").empty() && !get("WORLD_SIZE").empty() && get("WORLD_SIZE") != "1")
    return from_variables(get, "RANK", "WORLD_SIZE", "LOCAL_RANK");
  const bool slurm =
      !get("SLURM_PROCID").empty() && !get("SLURM_NTASKS").empty() && !get("MASTER_ADDR").empty();
  // PMIX_RANK says nothing of how many there are; parts of a heterogeneous job count their own
  // only.
  const bool alone = get("OMPI_COMM_WORLD_SIZE") == "1" ||
                     (get("SLURM_STEP_NUM_TASKS") == "1" && get("SLURM_HET_SIZE").empty());
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "MPI_LOCALNRANKS"}) {
    const std::string value = get(name);
    const bool counts = std::strcmp(name, "PMIX_RANK") != 0;
    if (value.empty() || (counts ? value == "1" : alone)) continue;
    Launch l;
    l.kind = Launch::Kind::kMpi;
    l.description = "MPI";
    // srun sets PMI's variables by itself; a build without MPI takes SLURM's own.
    if (has_mpi() || !slurm) return l;
  }
  if (!get("WORLD_SIZE").empty() || !get("RANK").empty()) {
    for (const char* name : {"WORLD_SIZE", "RANK"})
      RWKV_CHECK(!get(name).empty(), ConfigError, "starting ranks: of RANK and WORLD_SIZE only ",
                 get("RANK").empty() ? "WORLD_SIZE" : "RANK", " is set; set both or none");
    return from_variables(get, "RANK", "WORLD_SIZE", "LOCAL_RANK");
  }
  if (slurm) return from_variables(get, "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID");
  return {};
}

Launch detect_launch() {
  return detect_launch([](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value == nullptr ? "" : value);
  });
}

Launch fork_local_ranks(int count, const std::string& program, int* exit_code) {
  Launch l;
  l.description = "--gpus";
  if (count == 1) return l;
  l.kind = Launch::Kind::kTcp;
  l.size = count;
  l.address = "127.0.0.1";
  l.job = random_token();
  l.job_name = str("of ", program, " ", ::getpid());
  const int listener = listen_locally(&l.port);
  // Parents that ignore it hand that down; the system would then forget how ranks ended.
  struct sigaction usual = {};
  usual.sa_handler = SIG_DFL;
  sigemptyset(&usual.sa_mask);
  sigaction(SIGCHLD, &usual, nullptr);
  std::fflush(nullptr);
  std::vector<pid_t> pids;
  const pid_t parent = ::getpid();
  // One that comes now reaches the parent when it has started all, and from it all of them, when
  // they know what to do with it.
  std::optional<SignalsWait> wait(std::in_place);
  for (int r = 0; r < count; ++r) {
    const pid_t pid = ::fork();
    if (pid < 0) {
      for (const pid_t p : pids) ::kill(p, SIGKILL);
      throw ConfigError(str("starting rank ", r, " of ", count, ": ", std::strerror(errno)));
    }
    if (pid == 0) {
      // A group of their own: a terminal's Ctrl-C reaches the parent, which passes it on once.
      ::setpgid(0, pids.empty() ? 0 : pids[0]);
      ::prctl(PR_SET_PDEATHSIG, SIGTERM);
      if (::getppid() != parent) ::_exit(1);
      end_cleanly_on_signals(program);
      hold_signals();
      l.rank = l.local_rank = r;
      if (r == 0)
        l.listening_fd = listener;
      else
        ::close(listener);
      return l;
    }
    ::setpgid(pid, pids.empty() ? pid : pids[0]);
    pids.push_back(pid);
  }
  ::close(listener);
  struct sigaction action = {};
  action.sa_handler = note_signal;
  sigemptyset(&action.sa_mask);
  for (const int signal : kStopSignals)
    if (signal != SIGHUP || hangup_ends()) sigaction(signal, &action, nullptr);
  wait.reset();
  *exit_code = watch_ranks(pids, program);
  l.kind = Launch::Kind::kSingle;
  l.rank = -1;
  return l;
}

RankSession::RankSession(const Launch& launch) : launch_(launch) {
  if (launch.kind == Launch::Kind::kMpi)
    group_ = open_mpi_group(&launch_.local_rank);
  else if (launch.kind == Launch::Kind::kTcp) {
    group_ = open_tcp_group(launch, TcpLimits::from_environment());
    hold_signals();
  }
  if (group_ && group_->size() == 1) group_.reset();
}

Communicator* RankSession::connect(Device device, bool copy_engines) {
  if (!group_) return comm_.get();
  agree(group_.get(), [&] {
    RWKV_CHECK(device == Device::kCuda || launch_.kind == Launch::Kind::kMpi, ConfigError,
               "starting ", size(), " CPU ranks by ", launch_.description,
               ": CPU ranks exchange over MPI; start them with mpirun -n ", size(),
               ", or use --device cuda");
    RWKV_CHECK(device == Device::kCpu || has_nccl(), ConfigError, "starting ", size(),
               " GPU ranks: this build has no NCCL; build where CUDA and nccl.h are found "
               "(Debian/Ubuntu: libnccl-dev)");
  });
  comm_ = device == Device::kCpu
              ? open_mpi_communicator(std::move(group_))
              : open_nccl_communicator(std::move(group_), launch_.local_rank, copy_engines);
  return comm_.get();
}

int run_ranks(int gpus, const std::string& program, const std::function<int(RankSession&)>& body) {
  Launch launch = detect_launch();
  if (gpus > 1) {
    RWKV_CHECK(launch.kind == Launch::Kind::kSingle, ConfigError, "--gpus ", gpus,
               " starts ranks by itself, but this process is one of several already (",
               launch.description, "); leave one of them out");
    int code = 0;
    launch = fork_local_ranks(gpus, program, &code);
    if (launch.rank < 0) return code;
  }
  std::unique_ptr<RankSession> session;
  try {
    session = std::make_unique<RankSession>(launch);
  } catch (const ReportedError& e) {
    // Rank 0 says why; launchers end it when the first rank fails.
    ::usleep(500000);
    return e.exit_code();
  } catch (const Error& e) {
    if (launch.rank == 0 || gpus <= 1) throw;
    return e.exit_code();  // rank 0, in the same terminal, says it
  }
  const auto fail = [&](const char* what, int code) { session->group()->abort(what, code); };
  try {
    return body(*session);
  } catch (const ReportedError& e) {
    return e.exit_code();
  } catch (const AgreedError& e) {
    // Before the session ends: launchers end this rank when the first of the others has.
    std::string line = e.what();
    std::ranges::replace(line, '\n', ' ');
    std::fflush(stdout);
    std::fprintf(stderr, "%s: error: %s\n", program.c_str(), line.c_str());
    std::fflush(stderr);
    return e.exit_code();
  } catch (const Error& e) {
    if (session->group() == nullptr) throw;
    fail(e.what(), e.exit_code());
  } catch (const std::bad_alloc&) {
    if (session->group() == nullptr) throw;
    fail("out of memory", 4);
  } catch (const std::exception& e) {
    if (session->group() == nullptr) throw;
    fail(e.what(), 1);
  }
  return 1;
}

}  // namespace rwkv
