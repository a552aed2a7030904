// In:  the browser's language, a key. Out: words in English or Chinese; `language` is a signal, so the page follows it.
// A key missing in one language is a type error.

import { effect, signal } from "@preact/signals";
import { recall, remember } from "./memory";

const en = {
  brand: "danlu",
  chat: "Chat",
  compare: "Compare",
  rooms: "Other rooms",
  runs: "Runs",
  rank: "Rank",
  operator: "Operator",
  newChat: "New conversation",
  forget: "Delete this conversation",
  forgetSure: "Delete for good?",
  forgetAll: "Delete all my conversations",
  forgetAllSure: "Delete all of them for good?",
  forgottenAll: "Nothing that was compared in this browser is left on the server.",
  forgottenSome: "Some are not in this server's store, perhaps in another run's: serve that one and delete again.",
  settings: "Settings",
  model: "Model",
  against: "Compare with",
  itself: "itself, another draw",
  temperature: "Temperature",
  topP: "Top-p",
  maxTokens: "Longest answer, in tokens",
  noLimit: "no limit",
  system: "Instructions for every answer",
  systemHint: "e.g. Answer in one sentence.",
  otherLanguage: "中文",
  greeting: "The furnace is warm.",
  greetingCompare: "Two answers, one judge.",
  greetingMore: "Ask something. The model runs on this machine, and your words stay on it.",
  greetingCompareMore: "You see two answers without knowing who wrote them. Your vote teaches the next model.",
  ask: "Your message",
  askHint: "Ask anything",
  send: "Send",
  stop: "Stop",
  keys: "Enter sends · Shift+Enter starts a new line · Esc stops",
  conversation: "Conversation",
  you: "You",
  answer: "Answer",
  thinking: "Writing …",
  stopped: "Stopped.",
  cut: "The answer reached its length limit.",
  leftOut: "Older turns were left out: they no longer fit into what the model can read.",
  copy: "Copy",
  copied: "Copied",
  again: "Try again",
  left: "Left",
  right: "Right",
  votes: "Which answer is better?",
  voteLeft: "Left is better",
  voteRight: "Right is better",
  voteTie: "A tie",
  voteBad: "Both are bad",
  voteSkip: "Going on without a vote keeps the left answer.",
  chosen: "chosen",
  seal: "✓",
  thanksSide: "Thank you. The conversation goes on with your choice.",
  thanksTie: "Thank you. The conversation goes on with the left answer.",
  thanksBad: "Thank you. Neither answer is kept; your message is back in the box below.",
  seed: "seed",
  unreachable: "The server does not answer. Is danlu serve still running?",
  dismiss: "Dismiss",
};

export type Key = keyof typeof en;

const zh: Record<Key, string> = {
  brand: "丹炉",
  chat: "对话",
  compare: "对比",
  rooms: "其他房间",
  runs: "运行",
  rank: "排序",
  operator: "管理",
  newChat: "新对话",
  forget: "删除这段对话",
  forgetSure: "确定彻底删除？",
  forgetAll: "删除我的所有对话",
  forgetAllSure: "确定全部彻底删除？",
  forgottenAll: "在这个浏览器里对比过的内容，服务器上已不再保留。",
  forgottenSome: "有几段不在这个服务的存储里，也许属于另一次运行：启动那一个，再删一次。",
  settings: "设置",
  model: "模型",
  against: "与谁对比",
  itself: "它自己，再答一次",
  temperature: "温度",
  topP: "Top-p",
  maxTokens: "回答最长多少词元",
  noLimit: "不限",
  system: "每次回答都遵循的要求",
  systemHint: "例如：用一句话回答。",
  otherLanguage: "English",
  greeting: "炉火已温。",
  greetingCompare: "两答一判。",
  greetingMore: "问点什么吧。模型就在这台机器上，你的话不会离开它。",
  greetingCompareMore: "两个回答并排，不知出自谁手。你的一票，会教给下一个模型。",
  ask: "你的消息",
  askHint: "问点什么",
  send: "发送",
  stop: "停止",
  keys: "回车发送 · Shift+回车换行 · Esc 停止",
  conversation: "对话记录",
  you: "你",
  answer: "回答",
  thinking: "书写中……",
  stopped: "已停止。",
  cut: "回答到了长度上限。",
  leftOut: "较早的几轮没有带上：模型一次读不下了。",
  copy: "复制",
  copied: "已复制",
  again: "重答",
  left: "左",
  right: "右",
  votes: "哪个回答更好？",
  voteLeft: "左边更好",
  voteRight: "右边更好",
  voteTie: "不分上下",
  voteBad: "都不好",
  voteSkip: "不投票也可以继续，对话沿用左边的回答。",
  chosen: "已选",
  seal: "选",
  thanksSide: "谢谢。对话从你选的回答继续。",
  thanksTie: "谢谢。对话从左边的回答继续。",
  thanksBad: "谢谢。两个回答都不留，你的消息已放回下面的输入框。",
  seed: "种子",
  unreachable: "服务没有回应。danlu serve 还在运行吗？",
  dismiss: "知道了",
};

/** Things to try on the empty page with a model of which nobody says what it was made for. */
export const SUGGESTIONS = {
  en: ["Tell me a short story about a lantern.", "Explain rain to a child.", "Write two sentences about the sea."],
  zh: ["讲一个关于灯笼的小故事。", "给孩子讲讲为什么下雨。", "写两句关于大海的话。"],
};

export const language = signal<"en" | "zh">(
  recall("language", navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en"),
);

effect(() => {
  document.documentElement.lang = language.value === "zh" ? "zh-Hans" : "en";
});

export function switchLanguage(): void {
  language.value = language.value === "zh" ? "en" : "zh";
  remember("language", language.value);
}

export function t(key: Key): string {
  return (language.value === "zh" ? zh : en)[key];
}
