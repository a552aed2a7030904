// In:  an answer or a comparison that is wanted. Out: a conversation whose messages are signals, written as they come.
// Left out: which conversation is on the page and what people do to it (state.ts), how it travels (api.ts).

import { batch, computed, signal } from "@preact/signals";
import * as api from "./api";
import { Pen } from "./pen";
import { tell } from "./problem";
import { models, options, rater, served, settings, summarises } from "./settings";
import { type Picked, path, pick } from "./tree";
import { type Comparison, type Draft, type Node, dropped, keep, kept, newComparison, newNode, progressOf, remembered, stored } from "./turns";

// The server takes 256 messages and 2 MB. What is older than this fits no context that we serve.
const MOST_MESSAGES = 200;
const MOST_CHARACTERS = 300_000;

/** What is being written. An answer of a conversation has an id once it has begun; a comparison never does. */
interface Running {
  abort: AbortController;
  answer: string | null;
  stopping: boolean; // somebody asked for its end
}

/** A conversation, with the tree of its messages and what is being written in it. */
export class Talk {
  readonly id = signal<string | null>(null);
  readonly title = signal("");
  readonly system = signal("");
  readonly nodes = signal<Node[]>([]);
  readonly picked = signal<Picked>({});
  /** By the key of the message that was answered twice. */
  readonly comparisons = signal<ReadonlyMap<string, Comparison>>(new Map());
  readonly way = computed(() => path(this.nodes.value, this.picked.value));
  readonly busy = computed(() => this.running.value !== null);
  private readonly running = signal<Running | null>(null);
  /** Over once all answers that were chosen are in the conversation; whoever goes on waits for it. */
  adopted: Promise<void> = Promise.resolve();

  /** The comparison at the end that still waits for a vote, if there is one. */
  readonly undecided = computed(() => {
    const last = this.way.value.at(-1);
    const comparison = last && this.comparisons.value.get(last.key);
    return comparison?.id.value && !comparison.answer.value && !comparison.counted.value ? comparison : null;
  });

  static from(whole: api.StoredConversation): Talk {
    const talk = new Talk();
    talk.id.value = whole.id;
    talk.title.value = whole.title;
    talk.system.value = whole.system;
    talk.nodes.value = whole.messages.map(stored);
    talk.comparisons.value = remembered(whole.id);
    return talk;
  }

  add(...nodes: Node[]): void {
    batch(() => {
      this.nodes.value = [...this.nodes.value, ...nodes];
      for (const node of nodes) this.picked.value = pick(this.picked.value, node);
    });
  }

  drop(...nodes: Node[]): void {
    this.nodes.value = this.nodes.value.filter((node) => !nodes.includes(node));
  }

  newQuestion(parent: Node | null, text: string): Node {
    const asked = newNode(parent, "user", text);
    this.add(asked);
    return asked;
  }

  /** The message that a comparison answers. */
  asked(comparison: Comparison): Node | null {
    return this.node([...this.comparisons.value].find(([, other]) => other === comparison)?.[0] ?? null);
  }

  node(key: string | null): Node | null {
    return this.nodes.value.find((node) => node.key === key) ?? null;
  }

  /** Ask for the end of what is being written: its last words still come. Asked twice, or at once, it is left alone. */
  stop(atOnce = false): void {
    const running = this.running.value;
    if (!running) return;
    const { abort, answer } = running;
    if (answer) void api.stop(answer).catch(() => abort.abort());
    if (atOnce || running.stopping || answer === "") abort.abort();
    running.stopping = true;
  }

  forgetComparisons(): void {
    this.comparisons.value = new Map();
    if (this.id.value) dropped(this.id.value);
  }

  /**
   * Have a message answered.
   *
   * @param asked a message of the tree; if the server does not have it yet, it is sent along.
   * @returns whether anything came of it: false, and nothing is left in the tree, where the server took nothing.
   */
  async answer(asked: Node): Promise<boolean> {
    const reply = newNode(asked, "assistant");
    this.add(reply);
    await this.run([reply], async (pen, running) => {
      await served;
      const parent = this.node(asked.parent)?.id.value ?? null;
      const question = asked.id.value ? { parent: asked.id.value } : { parent, content: asked.text.value };
      const { model, system } = settings.value;
      if (!this.id.value) this.system.value = system.trim();
      reply.told.value = { model, model_hash: models.value.find(({ id }) => id === model)?.hash, sampling: { ...options() } };
      const whole = { conversation: this.id.value, ...question };
      const events = api.chat(model, whole, this.system.value, options(), summarises(), running.abort.signal);
      await this.hear(events, reply, asked, pen, running);
    });
    if (reply.id.value || reply.text.value) return true;
    this.drop(reply);
    return this.takeBack(asked);
  }

  /** Follow an answer that was being written when the page was opened. */
  async resume({ answer, parent }: api.UnderWay): Promise<void> {
    const asked = this.node(parent);
    if (!asked || this.node(answer)) return; // it was whole before the server told the rest
    const reply = newNode(asked, "assistant");
    this.add(reply);
    await this.run([reply], (pen, running) => {
      running.answer = answer;
      return this.hear(api.follow(answer, running.abort.signal), reply, asked, pen, running);
    });
    if (!reply.id.value && !reply.text.value) this.drop(reply);
  }

  /** Write an answer as it comes; one that begins again is the same, so what is there already is passed over. */
  private async hear(
    events: AsyncIterable<api.ChatEvent>, reply: Node, asked: Node, pen: Pen, running: Running,
  ): Promise<void> {
    const began = performance.now();
    const fresh = running.answer === null;
    const since = () => (performance.now() - began) / 1000;
    let known = 0;
    try {
      for await (const event of events) {
        if (event.type === "start") {
          pen.flush();
          known = reply.text.value.length;
          this.begin(reply, asked, event, running);
        } else if (event.type === "delta") {
          if (fresh) reply.told.value.wait ??= since();
          pen.write(reply.text, event.text.slice(known));
          known = Math.max(0, known - event.text.length);
        } else {
          pen.flush();
          this.finish(reply, event, since());
        }
      }
    } finally {
      pen.flush();
      if (reply.text.value) reply.id.value ??= running.answer; // the server keeps it, as far as it comes
    }
  }

  private begin(reply: Node, asked: Node, event: api.ChatEvent & { type: "start" }, running: Running): void {
    const { model, left_out, note } = event;
    batch(() => {
      this.id.value = event.conversation;
      asked.id.value ??= event.user;
      reply.told.value = { ...reply.told.value, ...(model ? { model } : {}), left_out, note };
    });
    const stopped = running.stopping && !running.answer;
    running.answer = event.answer;
    if (stopped) this.stop(); // somebody could not wait for the first word
  }

  private finish(reply: Node, event: api.Facts & { message: string | null }, seconds: number): void {
    const { message, ...facts } = event;
    batch(() => {
      reply.id.value = message;
      reply.progress.value = progressOf(facts.finish_reason);
      reply.told.value = { ...reply.told.value, seconds, ...facts };
    });
  }

  /** A message that got no answer at all leaves the tree, unless the server has it. */
  private takeBack(asked: Node): boolean {
    if (!asked.id.value) this.drop(asked);
    return asked.id.value !== null;
  }

  /** Have a message answered twice, side by side. Returns as `answer` does. */
  async compare(asked: Node): Promise<boolean> {
    const both = newComparison();
    this.comparisons.value = new Map([...this.comparisons.value, [asked.key, both]]);
    await this.run([both.left, both.right], async (pen, running) => {
      await served;
      const { model, against } = settings.value;
      const names = against && against !== model ? [model, against] : [model];
      running.answer = ""; // nobody else can follow it: it ends when it is left alone
      const id = this.id.value ?? (await this.start(asked.text.value));
      asked.id.value ??= await this.append(asked);
      const { messages, leftOut } = this.dialogue(asked);
      for await (const event of api.compare(names, messages, options(), id, rater, running.abort.signal)) {
        if (event.type === "start") both.leftOut.value = leftOut + event.left_out;
        else if (event.type === "delta") pen.write(both[event.side].text, event.text);
        else if (event.type === "finish") {
          pen.flush();
          both[event.side].progress.value = progressOf(event.finish_reason);
        } else both.id.value = event.comparison;
      }
    });
    this.remember();
    if (both.id.value || both.left.text.value || both.right.text.value) return true;
    this.comparisons.value = new Map([...this.comparisons.value].filter(([key]) => key !== asked.key));
    return this.takeBack(asked);
  }

  /** Go on with the answer of a comparison that was chosen, or with the first one. */
  adopt(comparison: Comparison): Promise<void> {
    const taken = this.adopted.then(() => this.take(comparison));
    this.adopted = taken.catch(() => undefined);
    return taken;
  }

  private async take(comparison: Comparison): Promise<void> {
    const side = kept(comparison);
    const asked = this.asked(comparison);
    if (!side || !asked || comparison.answer.value) return;
    const { text, progress } = comparison[side];
    const node = newNode(asked, "assistant", text.value);
    node.progress.value = progress.value;
    const who = comparison.verdict.value?.[side];
    if (who) {
      const { model, model_hash, seed, ...sampling } = who;
      node.told.value = { model, model_hash, seed, sampling };
    }
    node.id.value = await this.append(node);
    batch(() => {
      comparison.answer.value = node.key;
      this.add(node);
    });
    this.remember();
  }

  remember(): void {
    const id = (key: string | null) => this.node(key)?.id.value ?? key ?? "";
    if (!this.id.value) return;
    const pairs = [...this.comparisons.value].map(([key, one]): [string, Comparison] => {
      const answer = one.answer.value === null ? one.answer : signal(id(one.answer.value));
      return [id(key), { ...one, answer: answer as Comparison["answer"] }];
    });
    keep(this.id.value, new Map(pairs));
  }

  private async start(words: string): Promise<string> {
    const { id, title, system } = await api.startConversation(headline(words), settings.value.system.trim());
    batch(() => {
      this.id.value = id;
      this.title.value = title;
      this.system.value = system;
    });
    return id;
  }

  private async append(node: Node): Promise<string> {
    const parent = this.node(node.parent)?.id.value ?? null;
    const { model, model_hash, sampling, seed } = node.told.value;
    const message = { parent, role: node.role, content: node.text.value, ...(model ? { model, model_hash, sampling, seed } : {}) };
    return await api.append(this.id.value!, message as Parameters<typeof api.append>[1]);
  }

  /** Write with a pen until it is done, stopped or failed. */
  private async run(drafts: Draft[], write: Writing): Promise<void> {
    const running: Running = { abort: new AbortController(), answer: null, stopping: false };
    const pen = new Pen();
    this.running.value = running;
    try {
      await write(pen, running);
      pen.flush();
    } catch (error) {
      pen.flush();
      const stopped = running.abort.signal.aborted;
      for (const one of drafts) if (one.progress.value === "writing") one.progress.value = stopped ? "stopped" : "failed";
      if (!stopped) tell(error);
    } finally {
      if (this.running.value === running) this.running.value = null;
    }
  }

  /** What two answers are wanted to: the way to the message, without what is too old for any context. */
  private dialogue(asked: Node): { messages: api.Message[]; leftOut: number } {
    const way = this.way.value.slice(0, this.way.value.indexOf(asked) + 1);
    let characters = 0;
    const tooMuch = way.findLastIndex((node, at) => {
      characters += node.text.value.length;
      return node !== asked && (way.length - at > MOST_MESSAGES || characters > MOST_CHARACTERS);
    });
    const from = way.findIndex((node, at) => at > tooMuch && node.role === "user"); // a turn begins with a question
    const messages: api.Message[] = this.system.value ? [{ role: "system", content: this.system.value }] : [];
    for (const { role, text } of way.slice(from)) messages.push({ role, content: text.value });
    return { messages, leftOut: from };
  }
}

/** The first words, as the server makes a title of them. */
function headline(words: string): string {
  const line = words.trim().replace(/\s+/g, " ");
  return line.length <= 60 ? line : `${[...line].slice(0, 59).join("").trimEnd()}…`;
}

type Writing = (pen: Pen, running: Running) => Promise<void>;
