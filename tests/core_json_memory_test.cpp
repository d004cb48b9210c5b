// A value of JSON whose making finds no memory, at each allocation in turn: std::bad_alloc, nothing destroyed
// twice, nothing lost.
#include <gtest/gtest.h>

#include <cstdlib>
#include <new>
#include <string>

#include "core/json.h"

namespace {

// Of this thread alone, and only where a test asks for it: which allocation fails, counted down; and what is
// held.
thread_local long until_failure = 0, held = 0;

void* take(std::size_t bytes) {
  if (until_failure > 0 && --until_failure == 0) throw std::bad_alloc();
  void* const memory = std::malloc(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  ++held;
  return memory;
}

void give(void* memory) noexcept {
  if (memory == nullptr) return;
  --held;
  std::free(memory);
}

}  // namespace

void* operator new(std::size_t bytes) { return take(bytes); }
void* operator new[](std::size_t bytes) { return take(bytes); }
void operator delete(void* memory) noexcept { give(memory); }
void operator delete[](void* memory) noexcept { give(memory); }
void operator delete(void* memory, std::size_t) noexcept { give(memory); }
void operator delete[](void* memory, std::size_t) noexcept { give(memory); }

namespace switchyard {
namespace {

// Fails the first allocation of `make`, then the second, ... until there are no more. Returns how many there
// are.
template <class Make>
long fail_each(const Make& make) {
  constexpr long kMost = 1000;  // more than any of these has: the test ends where failures are swallowed
  for (long n = 1; n < kMost; ++n) {
    const long before = held;
    bool thrown = false;
    until_failure = n;
    try {
      make();
    } catch (const std::bad_alloc&) {
      thrown = true;
    }
    until_failure = 0;
    EXPECT_EQ(held, before) << "allocation " << n;
    if (!thrown) return n - 1;
  }
  ADD_FAILURE() << "the allocation that fails is seen by nobody";
  return kMost;
}

// Of more than what a string or a variant holds without the heap.
const std::string kText(100, 'x');

TEST(CoreJsonMemory, AListOfMembersThatThrows) {
  const Json other(kText);
  const long n = fail_each([&] {
    const Json json(Json::Object{{"a key that needs the heap, the first", kText},
                                 {"a key that needs the heap, the second", other},
                                 {"inner", Json::Object{{"one", other}, {"two", 2}, {"three", kText}}},
                                 {"list", Json::Array{other, kText, "a literal that needs the heap"}}});
  });
  EXPECT_GE(n, 20);  // keys, strings and arrays, most of them once for the list and once for the vector
}

TEST(CoreJsonMemory, ACopyThatThrows) {
  const Json text(kText), array(Json::Array{text, text}),
      object(Json::Object{{"text", text}, {"array", array}, {"number", 1.5}});
  for (const Json& json : {text, array, object}) {
    EXPECT_GE(fail_each([&] { const Json copy(json); }), 1);
    EXPECT_GE(fail_each([&] { const std::vector<Json> copies(3, json); }), 4);
  }
}

TEST(CoreJsonMemory, AnAssignmentThatThrowsChangesNothing) {
  const Json from(Json::Object{{"text", kText}, {"list", Json::Array{kText, kText}}});
  Json to(kText);
  EXPECT_GE(fail_each([&] {
              Json target(1);
              try {
                target = from;
              } catch (const std::bad_alloc&) {
                EXPECT_TRUE(target.is_integer());
                throw;
              }
            }),
            4);
  to = from;
  EXPECT_EQ(to, from);
}

}  // namespace
}  // namespace switchyard
