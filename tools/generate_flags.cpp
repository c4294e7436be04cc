#include "tools/generate_flags.h"

#include "tools/cli_common.h"

namespace rwkv {

void declare_generate_flags(CLI::App& app, GenerateFlags& f) {
  SamplingOptions& s = f.generate.sampling;
  app.add_option("--model", f.model,
                 "model file of any format, checkpoint, or run folder (its newest)")
      ->required();
  auto* text = app.add_option("--prompt", f.prompt, "text to continue; else standard input");
  auto* file = app.add_option("--prompt-file", f.prompt_file, "file with the text to continue");
  auto* ids = app.add_option("--prompt-ids", f.prompt_ids, "token ids to continue, as they are");
  text->excludes(file)->excludes(ids);
  file->excludes(ids);
  auto* no_start =
      app.add_flag("--no-start-token", f.no_start_token, "do not put id 0 before the prompt");
  app.add_option("--max-tokens", f.generate.max_tokens,
                 "tokens to generate; with --chat of an answer, 2048 by default")
      ->capture_default_str();
  app.add_option("--stop", f.generate.stop, "text that ends generation, not printed; repeatable")
      ->allow_extra_args(false);
  auto* ignore_end =
      app.add_flag("--ignore-end", f.ignore_end, "go on after id 0, the end of a document");
  app.add_option("--temperature", s.temperature, "0: greedy")->capture_default_str();
  app.add_option("--top-p", s.top_p, "acts before the temperature")->capture_default_str();
  app.add_option("--top-k", s.top_k, "0: off")->capture_default_str();
  app.add_option("--min-p", s.min_p, "0: off")->capture_default_str();
  app.add_option("--repetition-penalty", s.repetition_penalty, "1: off")->capture_default_str();
  app.add_option("--presence-penalty", s.presence_penalty, "0: off")->capture_default_str();
  app.add_option("--frequency-penalty", s.frequency_penalty, "0: off")->capture_default_str();
  app.add_option("--penalty-decay", s.penalty_decay, "1: off; the reference uses 0.996")
      ->capture_default_str();
  app.add_flag("--free-numbers", f.free_numbers, "digits and blanks pay no frequency penalty");
  app.add_option("--seed", s.seed, "equal seeds give equal texts")->capture_default_str();
  auto* stream =
      app.add_flag("--stream,!--no-stream", f.stream, "print text as it is generated (default)");
  auto* echo = app.add_flag("--echo", f.echo, "print the prompt first");
  auto* print_ids = app.add_flag("--ids", f.ids, "print token ids instead of text");
  app.add_flag("--stats", f.stats, "print timings to standard error");
  app.add_option("--state-in", f.state_in, "start from the state in this file");
  app.add_option("--state-out", f.state_out,
                 "write the state after prompt and output to this file");
  auto* chat = app.add_flag("--chat", f.chat,
                            "a conversation: every line of standard input is a message; /help "
                            "lists commands");
  for (auto* other : {text, file, ids, no_start, ignore_end, stream, echo, print_ids})
    chat->excludes(other);
  for (auto* of_chat :
       {app.add_option("--system", f.system, "chat: what comes before the messages"),
        app.add_option("--chat-template", f.chat_template, "chat: world or raven")
            ->capture_default_str(),
        app.add_option("--thinking", f.thinking, "chat: plain, on or off")->capture_default_str(),
        app.add_option("--effort", f.effort, "chat: after every message, such as 'think a bit'")})
    of_chat->needs(chat);
  app.add_option("--vocab", f.vocab, kVocabHelp);
  add_decode_flags(app, f.device);
  add_threads_flag(app, f.threads);
}

ChatOptions chat_options(const CLI::App& app, const GenerateFlags& f) {
  ChatOptions o{.sampling = f.generate.sampling,
                .stop = f.generate.stop,
                .chat = parse_chat_template(f.chat_template),
                .thinking = parse_thinking(f.thinking),
                .effort = f.effort,
                .system = f.system};
  const auto given = [&](const char* name) { return app.count(name) > 0; };
  // Usual for chats of RWKV models.
  if (!given("--top-p")) o.sampling.top_p = 0.4;
  if (!given("--presence-penalty")) o.sampling.presence_penalty = 0.5;
  if (!given("--frequency-penalty")) o.sampling.frequency_penalty = 0.1;
  if (!given("--penalty-decay")) o.sampling.penalty_decay = 0.996;
  if (given("--max-tokens")) o.max_tokens = f.generate.max_tokens;
  o.check();
  return o;
}

}  // namespace rwkv
