// Keys of the API: which there are, a new one, which is shown once, and revoking.

import { useSignal } from "@preact/signals";
import { type ApiKey, addKey, keys, revokeKey } from "./api";
import { Show, sentence, useLoaded } from "./load";
import { type Word, moment, w } from "./words";

const SCOPES: Word[] = ["chat", "operator"];

export function Keys() {
  const all = useLoaded(keys);
  const problem = useSignal("");
  const told = async (act: Promise<unknown>) => {
    try {
      await act;
      problem.value = "";
      await all.ask();
    } catch (error) {
      problem.value = sentence(error);
    }
  };
  return (
    <Show of={all}>
      {({ keys }) => (
        <>
          <p class="note">{keys.length ? w("keysMore") : `${w("noKeys")} ${w("keysMore")}`}</p>
          {problem.value && <p class="problem" role="alert">{problem.value}</p>}
          {keys.length > 0 && <Table keys={keys} onRevoke={(id) => told(revokeKey(id))} />}
          <NewKey told={told} />
        </>
      )}
    </Show>
  );
}

function Table({ keys, onRevoke }: { keys: ApiKey[]; onRevoke: (id: string) => Promise<void> }) {
  return (
    <div class="scroll" tabIndex={0} role="region" aria-labelledby="keys">
      <table class="figures">
        <thead>
          <tr>
            <th scope="col">{w("owner")}</th>
            <th scope="col">{w("keyLabel")}</th>
            <th scope="col">{w("scopes")}</th>
            <th scope="col">{w("created")}</th>
            <th scope="col"><span class="unseen">{w("revoke")}</span></th>
          </tr>
        </thead>
        <tbody>
          {keys.map((key) => (
            <tr key={key.id}>
              <th scope="row">{key.owner}</th>
              <td>{key.label}</td>
              <td>{key.scopes.map((scope) => (SCOPES.includes(scope as Word) ? w(scope as Word) : scope)).join(", ")}</td>
              <td>{moment(key.created)}</td>
              <td>{key.revoked ? w("revoked") : <Revoke onSure={() => onRevoke(key.id)} />}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** Asks once more; leaving the button takes the question back. */
function Revoke({ onSure }: { onSure: () => Promise<void> }) {
  const sure = useSignal(false);
  const press = () => {
    if (sure.value) void onSure();
    sure.value = !sure.value;
  };
  return (
    <button type="button" class={sure.value ? "quiet sure" : "quiet"} onClick={press} onBlur={() => (sure.value = false)}>
      {w(sure.value ? "revokeSure" : "revoke")}
    </button>
  );
}

function NewKey({ told }: { told: (act: Promise<unknown>) => Promise<void> }) {
  const owner = useSignal("");
  const label = useSignal("");
  const scope = useSignal("chat");
  const made = useSignal("");
  const add = async () => {
    made.value = await addKey(owner.value.trim(), label.value.trim(), scope.value === "chat" ? ["chat"] : ["chat", "operator"]);
    owner.value = label.value = "";
  };
  return (
    <form
      class="bar-of-acts"
      onSubmit={(event) => {
        event.preventDefault();
        void told(add());
      }}
    >
      <label class="field">
        <span>{w("owner")}</span>
        <input type="text" required value={owner.value} onInput={(event) => (owner.value = event.currentTarget.value)} />
      </label>
      <label class="field">
        <span>{w("keyLabel")}</span>
        <input type="text" maxLength={200} value={label.value} onInput={(event) => (label.value = event.currentTarget.value)} />
      </label>
      <label class="field">
        <span>{w("scopes")}</span>
        <select value={scope.value} onChange={(event) => (scope.value = event.currentTarget.value)}>
          <option value="chat">{w("chat")}</option>
          <option value="operator">{w("chat")}, {w("operator")}</option>
        </select>
      </label>
      <button type="submit" class="quiet firm">{w("addKey")}</button>
      {made.value && (
        <p class="wide" role="status">
          {w("keyOnce")} <code class="secret">{made.value}</code>
        </p>
      )}
    </form>
  );
}
