#include "watched.hpp"

#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

#include "common.hpp"

namespace rescale::detail {
namespace {

constexpr std::chrono::milliseconds kBeat{100};  // between two calls that ask whether to go on

std::thread started(const std::function<void()>& body) {
  try {
    return std::thread(body);
  } catch (const std::system_error& e) {
    fail(Code::backend, "no thread for a run whose progress is told: ", text(e.what()));
  }
}

}  // namespace

void watched(const std::function<void()>& work, const std::function<void()>& stop, const std::function<void()>& alive) {
  std::mutex lock;
  std::condition_variable changed;
  bool done = false;
  std::exception_ptr failed;
  std::thread thread = started([&] {
    try {
      work();
    } catch (...) {  // thrown again in the thread that waits
      failed = std::current_exception();
    }
    const std::lock_guard<std::mutex> guard(lock);
    done = true;
    changed.notify_one();
  });
  try {
    std::unique_lock<std::mutex> guard(lock);
    while (!changed.wait_for(guard, kBeat, [&] { return done; })) {
      guard.unlock();
      alive();
      guard.lock();
    }
  } catch (...) {
    stop();
    thread.join();
    throw;
  }
  thread.join();
  if (failed) std::rethrow_exception(failed);
}

}  // namespace rescale::detail
