#pragma once
/// A chat on standard input and output: lines become messages, lines with a slash commands.

#include "inference/chat_session.h"

namespace rwkv {

struct ChatConsoleOptions {
  bool stats = false;  ///< a line on standard error after every answer
};

/// Until the input ends or /quit. SIGINT while an answer is on its way ends the answer, a second
/// one the program. On a terminal mistakes are told and the chat goes on; else they are thrown.
/// Throws also IoError when standard output takes no more.
void run_chat(ChatSession& session, const ChatConsoleOptions& options);

}  // namespace rwkv
