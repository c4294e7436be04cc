// rwkv-serve as a program: what clients see.

#include <gtest/gtest.h>
#include <httplib.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "kernels/core/trace.h"
#include "tests/integration/serve_process.h"
#include "tests/unit/model_files.h"

namespace rwkv {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

using test::kPatience;

class Program : public test::ServeProcess {
 public:
  using ServeProcess::ServeProcess;

  struct Answer {
    int status = 0;
    Json body;
    httplib::Headers headers;
    std::string text;
  };
  static Answer answer(const httplib::Result& r) {
    if (!r) return {};
    return {r->status, Json::parse(r->body, nullptr, false), r->headers, r->body};
  }
  Answer get(const std::string& path, const httplib::Headers& headers = {}) const {
    auto c = client();
    return answer(c.Get(path.c_str(), headers));
  }
  Answer post(const std::string& path, const std::string& body,
              const httplib::Headers& headers = {}) const {
    auto c = client();
    return answer(c.Post(path.c_str(), headers, body, "application/json"));
  }
  Answer completion(const Json& body) const { return post("/v1/completions", body.dump()); }
  Answer chat(const Json& body) const { return post("/v1/chat/completions", body.dump()); }
  /// The events of a stream, without [DONE], which must be there.
  std::vector<Json> stream(const std::string& path, Json body) const {
    body["stream"] = true;
    const Answer a = post(path, body.dump());
    EXPECT_EQ(a.status, 200) << a.text;
    std::vector<Json> events;
    std::istringstream in(a.text);
    bool done = false;
    for (std::string line; std::getline(in, line);) {
      if (line.empty()) continue;
      EXPECT_FALSE(done) << "after the end: " << line;
      EXPECT_TRUE(line.starts_with("data: ")) << line;
      if (line == "data: [DONE]")
        done = true;
      else
        events.push_back(Json::parse(line.substr(6)));
    }
    EXPECT_TRUE(done);
    return events;
  }
  double metric(const std::string& name) const {
    const std::string text = "\n" + get("/metrics").text;
    const size_t at = text.find("\n" + name + " ");
    return at == std::string::npos ? -1 : std::atof(text.c_str() + at + name.size() + 2);
  }
  void wait_for_metric(const std::string& name, double value) const {
    const double limit = now_seconds() + kPatience;
    while (metric(name) != value) {
      ASSERT_LE(now_seconds(), limit) << name << " is " << metric(name) << ", not " << value;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }
};

class Serve : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    dir_ = fs::temp_directory_path() / str("greylag-serve-", static_cast<long>(getpid()));
    fs::create_directories(dir_);
    test::write_hdf5_model(path("alphabet.h5"), test::bigram_model(test::alphabet));
    test::write_hdf5_model(path("random.h5"), test::random_model(30, 2, 64, 257));
    alphabet_ = new Program(path("alphabet.h5"), {"--slots", "4", "--max-body-bytes", "20000",
                                                  "--max-tokens", "100000"});
    random_ = new Program(path("random.h5"), {"--slots", "8"});
  }
  static void TearDownTestSuite() {
    delete alphabet_;
    delete random_;
    fs::remove_all(dir_);
  }
  static std::string path(const std::string& name) { return (dir_ / name).string(); }

  static void expect_error(const Program::Answer& a, int status, const std::string& type,
                           const std::string& param, const std::string& message) {
    EXPECT_EQ(a.status, status) << a.text;
    ASSERT_TRUE(a.body.is_object() && a.body.contains("error")) << a.text;
    const Json& e = a.body["error"];
    EXPECT_EQ(e.size(), 4U) << a.text;
    EXPECT_EQ(e["type"], type);
    EXPECT_EQ(e["param"], param.empty() ? Json() : Json(param)) << a.text;
    EXPECT_TRUE(e.contains("code"));
    EXPECT_NE(e["message"].get<std::string>().find(message), std::string::npos) << a.text;
  }

  static inline fs::path dir_;
  static inline Program *alphabet_ = nullptr, *random_ = nullptr;
};

TEST_F(Serve, Completions) {
  const auto a = alphabet_->completion({{"prompt", "xa"}, {"max_tokens", 5}, {"temperature", 0}});
  ASSERT_EQ(a.status, 200) << a.text;
  EXPECT_EQ(a.body["object"], "text_completion");
  EXPECT_EQ(a.body["model"], "alphabet");
  EXPECT_EQ(a.body["choices"][0]["text"], "bcdef");
  EXPECT_EQ(a.body["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(a.body["usage"]["prompt_tokens"], 3);  // id 0 begins the document
  EXPECT_EQ(a.body["usage"]["completion_tokens"], 5);
  EXPECT_EQ(a.body["usage"]["total_tokens"], 8);

  const auto text = [&](Json body) {
    body["temperature"] = 0;
    const auto r = alphabet_->completion(body);
    EXPECT_EQ(r.status, 200) << r.text;
    return r.body["choices"];
  };
  EXPECT_EQ(text({{"prompt", "5"}, {"max_tokens", 50}})[0]["text"], "6789");
  EXPECT_EQ(text({{"prompt", "5"}, {"max_tokens", 50}})[0]["finish_reason"], "stop");
  EXPECT_EQ(text({{"prompt", "a"}, {"max_tokens", 50}, {"stop", "gh"}})[0]["text"], "bcdef");
  EXPECT_EQ(text({{"prompt", "a"}, {"max_tokens", 2}, {"echo", true}})[0]["text"], "abc");
  const Json many = text({{"prompt", {"a", "k", "5"}}, {"max_tokens", 2}, {"n", 2}});
  ASSERT_EQ(many.size(), 6U);
  const char* want[] = {"bc", "bc", "lm", "lm", "67", "67"};
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(many[i]["index"], i);
    EXPECT_EQ(many[i]["text"], want[i]);
  }
  EXPECT_EQ(text({{"prompt", Json::array({'m' + 1})}, {"max_tokens", 2}})[0]["text"], "no");
  EXPECT_EQ(text({{"prompt", "a"}, {"max_tokens", 2}, {"logit_bias", {{"121", 100}}}})[0]["text"],
            "xx");
  const Json p = text({{"prompt", "a"}, {"max_tokens", 2}, {"logprobs", 2}})[0]["logprobs"];
  EXPECT_EQ(p["tokens"], Json({"b", "c"}));
  EXPECT_EQ(p["text_offset"], Json({0, 1}));
  EXPECT_EQ(p["top_logprobs"][0].size(), 2U);
  EXPECT_EQ(p["top_logprobs"][0]["b"], p["token_logprobs"][0]);
}

TEST_F(Serve, Chats) {
  const Json hello = {{"messages", {{{"role", "user"}, {"content", "Tell a"}}}},
                      {"max_tokens", 20},
                      {"temperature", 0},
                      {"logprobs", true},
                      {"top_logprobs", 1}};
  const auto a = alphabet_->chat(hello);
  ASSERT_EQ(a.status, 200) << a.text;
  EXPECT_EQ(a.body["object"], "chat.completion");
  const Json choice = a.body["choices"][0];
  EXPECT_EQ(choice["message"]["role"], "assistant");
  // After the colon of "Assistant:" the model says "a".
  EXPECT_EQ(choice["message"]["content"], "abcdefghijklmnopqrst");
  EXPECT_EQ(choice["logprobs"]["content"].size(), 20U);
  EXPECT_EQ(choice["logprobs"]["content"][1]["token"], "b");
  EXPECT_EQ(choice["logprobs"]["content"][1]["bytes"], Json({'b'}));
  EXPECT_EQ(choice["logprobs"]["content"][1]["top_logprobs"].size(), 1U);
  EXPECT_EQ(a.body["usage"]["prompt_tokens"],
            static_cast<int>(std::string("User: Tell a\n\nAssistant:").size()));

  // The second turn has the first one's beginning in the cache.
  Json more = hello;
  more["messages"].push_back({{"role", "assistant"}, {"content", "abc"}});
  more["messages"].push_back({{"role", "user"}, {"content", "And"}});
  const auto b = alphabet_->chat(more);
  EXPECT_EQ(b.body["usage"]["prompt_tokens_details"]["cached_tokens"],
            static_cast<int>(std::string("User: Tell a\n\n").size()));
}

TEST_F(Serve, StreamsSayTheSameAsWholeAnswers) {
  for (const char* path : {"/v1/completions", "/v1/chat/completions", "/chat/completions"}) {
    const bool chat = std::string(path).find("chat") != std::string::npos;
    Json body = {{"max_tokens", 30}, {"seed", 5}, {"n", 3}, {"ignore_eos", true}};
    if (chat)
      body["messages"] = {{{"role", "user"}, {"content", "hello"}}};
    else
      body["prompt"] = "hello";
    const auto whole = random_->post(path, body.dump());
    ASSERT_EQ(whole.status, 200) << whole.text;
    body["stream_options"] = {{"include_usage", true}};
    const std::vector<Json> events = random_->stream(path, body);
    ASSERT_GE(events.size(), 4U);
    std::vector<std::string> text(3), finish(3);
    for (size_t i = 0; i + 1 < events.size(); ++i) {
      const Json& e = events[i];
      EXPECT_EQ(e["id"], events[0]["id"]);
      EXPECT_EQ(e["created"], events[0]["created"]);
      EXPECT_EQ(e["object"], chat ? "chat.completion.chunk" : "text_completion");
      EXPECT_TRUE(e["usage"].is_null());
      const Json& c = e["choices"].at(0);
      const auto index = c["index"].get<size_t>();
      EXPECT_EQ(finish.at(index), "") << "after its end";
      if (!chat)
        text[index] += c["text"].get<std::string>();
      else if (c["delta"].contains("content"))
        text[index] += c["delta"]["content"].get<std::string>();
      if (!c["finish_reason"].is_null()) finish[index] = c["finish_reason"];
    }
    EXPECT_EQ(events.back()["choices"], Json::array());
    EXPECT_EQ(events.back()["usage"]["completion_tokens"],
              whole.body["usage"]["completion_tokens"]);
    for (size_t i = 0; i < 3; ++i) {
      const Json& c = whole.body["choices"][i];
      EXPECT_EQ(text[i], chat ? c["message"]["content"] : c["text"]);
      EXPECT_EQ(finish[i], c["finish_reason"]);
    }
    EXPECT_NE(text[0], text[1]);
  }
}

TEST_F(Serve, TheSameRequestGetsTheSameTextInACrowd) {
  const Json body = {{"prompt", "once"}, {"max_tokens", 60}, {"seed", 7}, {"ignore_eos", true}};
  const std::string alone = random_->completion(body).body["choices"][0]["text"];
  std::vector<std::thread> crowd;
  std::vector<std::string> texts(6);
  for (size_t i = 0; i < texts.size(); ++i)
    crowd.emplace_back([&, i] {
      Json mine = body;
      if (i % 2 == 1) mine["prompt"] = str("other ", i);
      const auto a = random_->completion(mine);
      if (a.status == 200) texts[i] = a.body["choices"][0]["text"];
    });
  for (auto& t : crowd) t.join();
  for (size_t i = 0; i < texts.size(); ++i) {
    EXPECT_NE(texts[i], "");
    EXPECT_EQ(texts[i] == alone, i % 2 == 0) << texts[i];
  }
}

TEST_F(Serve, ErrorsHaveTheShapeThatClientsKnow) {
  const std::string bad = "invalid_request_error";
  const auto post = [&](const std::string& body) {
    return alphabet_->post("/v1/completions", body);
  };
  expect_error(post("{\"prompt\": "), 400, bad, "", "not valid JSON");
  expect_error(post("[]"), 400, bad, "", "expected an object");
  expect_error(post(""), 400, bad, "", "not valid JSON");
  expect_error(post("\xff\xfe"), 400, bad, "", "not valid JSON");
  // What copies JSON recurses: 9000 levels were a stack overflow at larger limits of the body.
  expect_error(post(std::string(10000, '[')), 400, bad, "", "nested");
  const auto deep = [](const char* member) {
    return str("{\"prompt\": \"a\", \"", member, "\": ", std::string(9000, '['),
               std::string(9000, ']'), "}");
  };
  expect_error(post(deep("stop")), 400, bad, "", "nested");
  expect_error(alphabet_->post("/detokenize", deep("tokens")), 400, bad, "", "nested");
  EXPECT_EQ(post(str(R"({"prompt": "a", "stop": "\")", std::string(200, '['), "\"}")).status, 200);
  expect_error(post(R"({"prompt": "a", "temperature": 1e999})"), 400, bad, "", "out of range");
  expect_error(post("{}"), 400, bad, "prompt", "missing");
  expect_error(post(R"({"prompt": 5})"), 400, bad, "prompt", "is a number");
  expect_error(post(R"({"prompt": "a", "max_tokens": "5"})"), 400, bad, "max_tokens", "a string");
  expect_error(post(R"({"prompt": "a", "max_tokens": -5})"), 400, bad, "max_tokens", "-5");
  expect_error(post(R"({"prompt": "a", "max_tokens": 18446744073709551615})"), 400, bad,
               "max_tokens", "18446744073709551615");
  expect_error(post(R"({"prompt": "a", "temperature": -1})"), 400, bad, "temperature",
               "at least 0");
  expect_error(post(R"({"prompt": "a", "n": 17})"), 400, bad, "n", "17");
  expect_error(post(R"({"prompt": [300]})"), 400, bad, "prompt", "300");
  expect_error(post(R"({"prompt": "a", "stop": [1]})"), 400, bad, "stop", "a number");
  expect_error(post(R"({"prompt": "a", "logit_bias": {"x": 1}})"), 400, bad, "logit_bias", "'x'");
  expect_error(post(R"({"prompt": "a", "max_token": 3})"), 400, bad, "max_token",
               "did you mean max_tokens?");
  expect_error(post(R"({"prompt": "a", "suffix": "x"})"), 501, "not_supported_error", "suffix",
               "not supported");
  expect_error(post(R"({"prompt": "a", "model": "gpt"})"), 404, "not_found_error", "model", "gpt");
  expect_error(post(str("{\"prompt\": \"", std::string(30000, 'a'), "\"}")), 413, bad, "",
               "20000 bytes");
  // Bodies whose length is not told; none follows here, because the server reads none.
  const auto without_body = [&](const char* header, const char* value) {
    return alphabet_->post("/v1/completions", "", {{header, value}});
  };
  expect_error(without_body("Transfer-Encoding", "chunked"), 411, bad, "", "Content-Length");
  expect_error(without_body("Content-Encoding", "gzip"), 415, bad, "", "Content-Encoding");
  expect_error(alphabet_->chat({{"messages", Json::array()}}), 400, bad, "messages", "empty");
  expect_error(alphabet_->chat({{"messages", {{{"role", "cat"}, {"content", "x"}}}}}), 400, bad,
               "messages", "'cat'");
  expect_error(alphabet_->chat({{"messages", {{{"role", "user"}}}}}), 400, bad,
               "messages[0].content", "missing");
  expect_error(alphabet_->get("/v1/nowhere"), 404, "not_found_error", "", "/v1/nowhere");
  expect_error(alphabet_->get("/v1/completions"), 405, bad, "", "GET");
  expect_error(alphabet_->get("/v1/models/other"), 404, "not_found_error", "model", "other");
  for (const char* id : {"cmpl-999999", "cmpl99", "99999"})
    expect_error(alphabet_->get(str("/state/", id)), 404, "not_found_error", "", id);
  // It still works.
  EXPECT_EQ(alphabet_->get("/health").body["status"], "ok");
  EXPECT_EQ(alphabet_->get("/v1/models").body["data"][0]["id"], "alphabet");
  EXPECT_EQ(alphabet_->get("/v1/models/alphabet").body["object"], "model");
}

TEST_F(Serve, ClientsThatLeaveFreeTheirSlots) {
  const double before = alphabet_->metric("rwkv_slots_free");
  EXPECT_EQ(before, 4);
  for (const bool stream : {true, false}) {
    auto c = alphabet_->client();
    c.set_read_timeout(0, 300000);
    const Json body = {
        {"prompt", "a"}, {"max_tokens", 100000}, {"stream", stream}, {"ignore_eos", true}};
    int64_t received = 0;
    httplib::Request request;
    request.method = "POST";
    request.path = "/v1/completions";
    request.body = body.dump();
    request.content_receiver = [&](const char*, size_t n, uint64_t, uint64_t) {
      received += static_cast<int64_t>(n);
      return received < 2000;  // hang up in the middle
    };
    EXPECT_FALSE(c.send(request));
    c.stop();
    EXPECT_EQ(received >= 2000, stream);
    alphabet_->wait_for_metric("rwkv_slots_free", 4);
  }
}

TEST_F(Serve, KeysAndOriginsAreChecked) {
  std::ofstream(path("key")) << "secret\n";
  const Program program(path("random.h5"),
                        {"--api-key-file", path("key"), "--cors", "https://example.org"});
  const std::string body = R"({"prompt": "a", "max_tokens": 1})";
  const auto with = [&](const std::string& value) {
    return program.post("/v1/completions", body, {{"Authorization", value}});
  };
  expect_error(program.post("/v1/completions", body), 401, "authentication_error", "", "key");
  expect_error(with("Bearer wrong!"), 401, "authentication_error", "", "not the right one");
  expect_error(with("Bearer secrets"), 401, "authentication_error", "", "not the right one");
  expect_error(with("secret"), 401, "authentication_error", "", "Bearer");
  expect_error(program.get("/metrics"), 401, "authentication_error", "", "key");
  const auto good = with("Bearer secret");
  EXPECT_EQ(good.status, 200) << good.text;
  EXPECT_EQ(good.headers.find("Access-Control-Allow-Origin")->second, "https://example.org");
  EXPECT_EQ(program.get("/health").status, 200);
  auto c = program.client();
  const auto options = c.Options("/v1/chat/completions");
  ASSERT_TRUE(options);
  EXPECT_EQ(options->status, 204);
  // Without --cors no page of another server is let in.
  EXPECT_EQ(alphabet_->get("/health").headers.count("Access-Control-Allow-Origin"), 0U);
}

TEST_F(Serve, AFullQueueSaysWhenToComeBack) {
  const Program program(path("random.h5"), {"--slots", "1", "--queue", "1", "--max-tokens",
                                            "10000000", "--request-seconds", "5"});
  const Json endless = {{"prompt", "a"}, {"max_tokens", 10000000}, {"ignore_eos", true}};
  std::vector<std::thread> clients;
  std::vector<Program::Answer> answers(2);
  for (size_t i = 0; i < 2; ++i) {
    clients.emplace_back([&, i] { answers[i] = program.completion(endless); });
    program.wait_for_metric(i == 0 ? "rwkv_samples_decoding" : "rwkv_requests_waiting", 1);
  }
  const auto refused = program.completion(endless);
  expect_error(refused, 429, "rate_limit_error", "", "waiting");
  const auto retry = refused.headers.find("Retry-After");
  ASSERT_NE(retry, refused.headers.end());
  EXPECT_GE(std::atoi(retry->second.c_str()), 1);
  for (auto& t : clients) t.join();
  // The time limit ended the one that ran; the other had next to no time in its slot.
  EXPECT_EQ(answers[0].status, 200) << answers[0].text;
  EXPECT_EQ(answers[0].body["choices"][0]["finish_reason"], "length");
  EXPECT_TRUE(answers[1].status == 503 || answers[1].status == 200) << answers[1].text;
}

TEST_F(Serve, ConnectionsBeyondTheLimitAreToldSo) {
  const Program program(path("random.h5"), {"--max-connections", "2"});
  auto first = program.client(), second = program.client();
  for (auto* c : {&first, &second}) {
    c->set_keep_alive(true);
    const auto r = c->Get("/health");
    ASSERT_TRUE(r);
    EXPECT_EQ(r->status, 200);
  }
  const auto refused = program.get("/health");
  expect_error(refused, 429, "rate_limit_error", "", "2 connections");
  EXPECT_EQ(refused.headers.count("Retry-After"), 1U);
  // A place is free again once one of them hangs up.
  first.stop();
  const double limit = now_seconds() + kPatience;
  while (program.get("/health").status != 200) ASSERT_LE(now_seconds(), limit);
}

TEST_F(Serve, TerminationLetsRunningAnswersEnd) {
  Program program(path("random.h5"), {"--max-tokens", "100000", "--drain-seconds", "60"});
  Program::Answer answer;
  std::thread client([&] {
    answer = program.completion({{"prompt", "a"}, {"max_tokens", 1500}, {"ignore_eos", true}});
  });
  program.wait_for_metric("rwkv_samples_decoding", 1);
  program.terminate();
  const double limit = now_seconds() + kPatience;
  while (program.get("/health").status == 200 && now_seconds() < limit) {
  }
  client.join();
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.body["usage"]["completion_tokens"], 1500);
  EXPECT_EQ(program.wait(), 0);
}

TEST_F(Serve, WhatDoesNotEndInTimeIsCutOff) {
  Program program(path("random.h5"), {"--max-tokens", "10000000", "--drain-seconds", "0"});
  Program::Answer answer;
  std::thread client([&] {
    answer = program.completion({{"prompt", "a"}, {"max_tokens", 10000000}, {"ignore_eos", true}});
  });
  program.wait_for_metric("rwkv_samples_decoding", 1);
  program.terminate();
  client.join();
  expect_error(answer, 503, "unavailable_error", "", "shutting down");
  EXPECT_EQ(program.wait(), 0);
}

TEST_F(Serve, ThePageAndTheState) {
  const auto page = alphabet_->get("/");
  EXPECT_EQ(page.status, 200);
  EXPECT_TRUE(page.text.starts_with("<!doctype html>"));
  EXPECT_TRUE(page.text.ends_with("</html>\n"));
  EXPECT_EQ(page.text.find("http://"), std::string::npos) << "something from elsewhere";
  EXPECT_EQ(page.text.find("https://"), std::string::npos) << "something from elsewhere";
  EXPECT_EQ(page.headers.count("Content-Security-Policy"), 1U);
  const auto a = random_->completion(
      {{"prompt", "abc"}, {"max_tokens", 3}, {"keep_state", true}, {"ignore_eos", true}});
  const std::string id = a.body["id"];
  const auto state = random_->get("/state/" + id);
  ASSERT_EQ(state.status, 200) << state.text;
  EXPECT_EQ(state.body["tokens"], 4 + 2);
  ASSERT_EQ(state.body["layers"].size(), 2U);
  EXPECT_EQ(state.body["layers"][1]["name"], "blocks.1.att.wkv_state");
  EXPECT_EQ(state.body["layers"][0]["rows"], 64);
  EXPECT_GT(state.body["layers"][0]["largest"], 0);
  const auto picture = random_->get("/state/" + id + "/1");
  EXPECT_EQ(picture.text.size(), 64U * 64);
  EXPECT_EQ(random_->get("/state/" + id + "/2").status, 404);
  const Program bare(path("random.h5"), {"--no-page"});
  EXPECT_EQ(bare.get("/").status, 404);
}

/// Sending, streaming, settings, the state, stopping, and what the page says of a killed server.
TEST_F(Serve, ThePageWorksInABrowser) {
  Program server(path("alphabet.h5"), {});
  const std::string command =
      str("python3 ", RWKV_SOURCE_DIR, "/tools/check_page.py http://127.0.0.1:", server.port(),
          " --pid ", server.pid(), " > ", path("page.txt"), " 2>&1");
  const int status = std::system(command.c_str());
  if (WIFEXITED(status) && WEXITSTATUS(status) == 77) GTEST_SKIP() << "no Chromium";
  std::ifstream in(path("page.txt"));
  const std::string said{std::istreambuf_iterator<char>(in), {}};
  EXPECT_EQ(status, 0) << said;
  EXPECT_NE(said.find("not there"), std::string::npos) << said;
}

}  // namespace
}  // namespace rwkv
