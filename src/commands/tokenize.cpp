#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/tokenizer_record.h"
#include "commands/commands.h"
#include "commands/options.h"
#include "core/error.h"
#include "tokenizer/tokenizer.h"

namespace switchyard::commands {

namespace {

// Documents on standard input to their tokens on standard output: uint32 little-endian n, then n bytes of
// UTF-8; out of each one uint32 n, then n uint32 tokens.
struct Options {
  std::string tokenizer;         // a tokenizer.json, its directory, or "bytes"
  bool special_as_text = false;  // names of special tokens are text like any other
};

void describe(CLI::App& app, Options& options) {
  app.add_option("TOKENIZER", options.tokenizer, "A tokenizer.json, its directory, or 'bytes'")->required();
  app.add_flag("--special-as-text", options.special_as_text,
               "Names of special tokens in a document are text like any other");
  app.footer(
      "Standard input: documents, each a uint32 (little-endian) with its number of bytes, then its UTF-8 "
      "bytes.\n"
      "Standard output, for each document: a uint32 with its number of tokens, then the tokens as uint32. The\n"
      "text's tokens alone: nothing that begins or ends a text.");
}

void append_uint32(std::string& out, std::uint32_t value) {
  for (int shift = 0; shift < 32; shift += 8) out += static_cast<char>(value >> shift & 0xFF);
}

std::uint32_t uint32_at(const std::string& bytes, std::size_t at) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < 4; ++i)
    value |= std::uint32_t{static_cast<unsigned char>(bytes[at + i])} << (8 * i);
  return value;
}

// Adds what standard input has at hand, waiting for a byte at least; false at its end.
bool read_more(std::string& bytes) {
  char buffer[1 << 16];
  ssize_t n = 0;
  do n = ::read(STDIN_FILENO, buffer, sizeof buffer);
  while (n < 0 && errno == EINTR);
  if (n < 0) throw_input("standard input cannot be read: {}", std::strerror(errno));
  bytes.append(buffer, static_cast<std::size_t>(n));
  return n > 0;
}

void write_all(const std::string& bytes) {
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t n = ::write(STDOUT_FILENO, bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_input("standard output cannot be written: {}", std::strerror(errno));
    done += static_cast<std::size_t>(n);
  }
}

// Whole documents are answered as soon as they are there, before more is read: a program that writes a document
// and waits for its tokens gets them.
int run(const Options& options) {
  const auto tokenizer = checkpoint::open_tokenizer(options.tokenizer);
  std::string in, out;
  std::int64_t document = 0;
  bool more = true;
  while (more) {
    more = read_more(in);
    std::size_t at = 0;
    out.clear();
    while (in.size() - at >= 4) {
      const std::size_t size = uint32_at(in, at);
      if (in.size() - at - 4 < size) break;
      std::vector<std::int32_t> tokens;
      try {
        tokens = tokenizer->encode(std::string_view(in).substr(at + 4, size), false, options.special_as_text);
      } catch (const InputError& error) {
        throw_input("document {}: {}", document, error.what());
      }
      append_uint32(out, static_cast<std::uint32_t>(tokens.size()));
      for (const std::int32_t token : tokens) append_uint32(out, static_cast<std::uint32_t>(token));
      at += 4 + size;
      ++document;
    }
    in.erase(0, at);
    write_all(out);
  }
  if (!in.empty()) throw_input("standard input ends within document {}", document);
  return 0;
}

}  // namespace

const Command kTokenize = {"tokenize",
                           "Documents on standard input to tokens on standard output, for other programs",
                           with_options<Options, describe, run>};

}  // namespace switchyard::commands
