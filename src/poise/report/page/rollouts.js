// The rollouts: filters, a list of which only the visible rows exist, and the pair that is looked at.

const ROW_HEIGHT = 54;
let rollouts = { rows: 0 };
let order = new Int32Array(0); // rows that the filters leave, in the order of the list
let chosen = -1; // a row, not a place in the list
let lowered = null; // prompts and completions in small letters, made when somebody begins to search
let shaded = true;

const of = (name, row) => rollouts[name].distinct[rollouts[name].at[row]] ?? null;
const surprise = (row) => rollouts.reward[row] == null ? -1 : Math.abs(rollouts.reward[row] - (rollouts.value[row] ?? rollouts.baseline[row] ?? 0));
const filters = () => Object.fromEntries([...new FormData(byId("filters"))].filter(([, value]) => value !== ""));

function showRollouts(data) {
  rollouts = data;
  lowered = null;
  if (!rollouts.rows) {
    byId("explorer").replaceChildren(make("p", { class: "missing" }, "No rollouts are on disk."));
    return;
  }
  let [low, high] = [Infinity, -Infinity];
  for (const reward of rollouts.reward) if (reward != null) [low, high] = [Math.min(low, reward), Math.max(high, reward)];
  Object.assign(rollouts, { low, high });
  const form = byId("filters");
  const before = { domain: form.domain.value, cause: form.cause.value };
  for (const [name, any] of [["domain", "all"], ["cause", "any"]]) {
    const options = [...rollouts[name].distinct].sort().map((each) => make("option", { value: each }, each));
    form[name].replaceChildren(make("option", { value: "" }, any), ...options);
    form[name].value = before[name];
  }
  form.querySelector(".cause").hidden = !rollouts.cause.distinct.length;
  if (!location.hash.includes("=")) refilter();
  followHash();
  requestIdleCallback(() => (lowered ??= lowerCase()));
}

function refilter() {
  const wanted = filters();
  const { low, high } = rollouts;
  const tests = [];
  const kinds = {
    right: (row) => rollouts.reward[row] === high,
    wrong: (row) => rollouts.reward[row] === low,
    split: (row) => rollouts.reward[row] != null && siblings(row).some((other) => ![null, rollouts.reward[row]].includes(rollouts.reward[other])),
    cut: (row) => rollouts.truncated[row] === 1,
    ungraded: (row) => rollouts.reward[row] == null,
  };
  if (kinds[wanted.kind]) tests.push(kinds[wanted.kind]);
  for (const name of ["domain", "cause"]) {
    if (!wanted[name]) continue;
    const at = rollouts[name].distinct.indexOf(wanted[name]);
    tests.push((row) => rollouts[name].at[row] === at);
  }
  if (wanted.from) tests.push((row) => rollouts.step[row] >= +wanted.from);
  if (wanted.to) tests.push((row) => rollouts.step[row] <= +wanted.to);
  if (wanted.text) {
    const text = wanted.text.toLowerCase();
    const prompts = (lowered ??= lowerCase()).prompts.map((each) => each.includes(text));
    tests.push((row) => prompts[rollouts.prompt.at[row]] || lowered.completions[row].includes(text));
  }
  const kept = [];
  for (let row = 0; row < rollouts.rows; row++) if (tests.every((test) => test(row))) kept.push(row);
  order = Int32Array.from(kept);
  if (wanted.sort === "surprise" || wanted.sort === "push") {
    const key = new Float64Array(rollouts.rows);
    for (const row of kept) key[row] = wanted.sort === "push" ? Math.abs(rollouts.advantage[row] ?? 0) : surprise(row);
    order.sort((p, q) => key[q] - key[p] || p - q);
  } else if (wanted.sort !== "old") {
    order.sort((p, q) => rollouts.step[q] - rollouts.step[p] || p - q);
  }
  fill("count", document.createTextNode(`${number(order.length)} of ${number(rollouts.rows)} rollouts`));
  byId("rows").style.height = order.length * ROW_HEIGHT + "px";
  byId("list").scrollTop = 0;
  if (!order.includes(chosen)) chosen = order.length ? order[0] : -1;
  showRows();
  showPair();
}

const lowerCase = () => ({
  prompts: rollouts.prompt.distinct.map((each) => each.toLowerCase()),
  completions: rollouts.completion.map((each) => each.toLowerCase()),
});

function showRows() {
  const list = byId("list");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - 4);
  const last = Math.min(order.length, first + Math.ceil(list.clientHeight / ROW_HEIGHT) + 9);
  const rows = [];
  for (let at = first; at < last; at++) {
    const row = order[at];
    const reward = rollouts.reward[row];
    const element = make("div", { class: "row", role: "option", id: "row-" + row, "aria-selected": String(row === chosen), "aria-setsize": order.length, "aria-posinset": at + 1 },
      make("span", { class: "first" },
        make("b", { class: mood(reward) }, reward == null ? "not graded" : number(reward, 2)),
        make("span", {}, `advantage ${signed(rollouts.advantage[row])}`),
        rollouts.truncated[row] ? make("span", { class: "badge bad" }, "cut off") : null,
        make("span", { class: "soft" }, [of("domain", row), `step ${rollouts.step[row]}`].filter(Boolean).join(" · "))),
      make("span", { class: "text" }, `${plainPrompt(of("prompt", row)).slice(-160)} → ${rollouts.completion[row].slice(0, 160)}`));
    element.style.top = at * ROW_HEIGHT + "px";
    element.addEventListener("click", () => choose(row));
    rows.push(element);
  }
  byId("rows").replaceChildren(...rows);
  list.setAttribute("aria-activedescendant", "row-" + chosen);
}

const mood = (reward) => (reward == null ? "soft" : reward >= rollouts.high && rollouts.high > rollouts.low ? "good" : reward <= rollouts.low ? "bad" : "");

// Prompts of chats are stored as JSON.
function messages(prompt) {
  if (!prompt.startsWith("[{")) return null;
  try {
    const read = JSON.parse(prompt);
    return read.every((each) => typeof each === "object" && "role" in each) ? read : null;
  } catch {
    return null;
  }
}
const plainPrompt = (prompt) => {
  const chat = messages(prompt ?? "");
  return chat ? chat.map((each) => contentOf(each)).join(" ") : prompt ?? "";
};
function contentOf(message) {
  const { role, content, ...rest } = message;
  const text = typeof content === "string" ? content : content == null ? "" : JSON.stringify(content, null, 1);
  return Object.keys(rest).length ? `${text}\n${JSON.stringify(rest, null, 1)}`.trim() : text;
}

function siblings(row) {
  const found = [];
  for (let next = rollouts.sibling[row]; next != null && next !== row && found.length < 256; next = rollouts.sibling[next]) found.push(next);
  return found;
}

function choose(row, partner) {
  chosen = row;
  const at = order.indexOf(row);
  const list = byId("list");
  if (at >= 0 && (at * ROW_HEIGHT < list.scrollTop || (at + 1) * ROW_HEIGHT > list.scrollTop + list.clientHeight)) {
    list.scrollTop = at * ROW_HEIGHT - list.clientHeight / 2;
  }
  showRows();
  showPair(partner);
  remember();
}

function showPair(partner) {
  if (chosen < 0) return fill("pair", make("p", { class: "missing" }, "No rollout is left by the filters."));
  const prompt = of("prompt", chosen) ?? "";
  const others = siblings(chosen);
  const second = partner ?? others[0];
  const chat = messages(prompt);
  const shade = make("label", { class: "shade" }, make("input", { type: "checkbox", checked: shaded }), "shade tokens by entropy");
  shade.firstChild.addEventListener("change", (event) => {
    shaded = event.target.checked;
    showPair(second);
  });
  const pair = [chosen, second].filter((row) => row != null);
  const more = others.length > 1 && make("p", { class: "others" }, "Beside the sibling with reward ", ...others.map((row) => {
    const button = make("button", { type: "button", "aria-pressed": String(row === second) }, number(rollouts.reward[row], 2));
    button.addEventListener("click", () => showPair(row));
    return button;
  }));
  const gold = of("answer", chosen);
  fill("pair",
    make("p", { class: "soft" }, [`step ${rollouts.step[chosen]}, rollout ${rollouts.row[chosen]}`, of("domain", chosen)].filter(Boolean).join(" · ")),
    ...(chat ? chat.map((each) => make("div", { class: "message" }, make("span", { class: "role" }, each.role), make("pre", {}, contentOf(each)))) : [make("pre", { class: "prompt" }, prompt)]),
    gold == null ? null : make("p", { class: "gold" }, "Gold answer: ", make("code", {}, gold)),
    pair.some((row) => rollouts.tokens[row]) ? shade : null,
    more || null,
    make("div", { class: "sides" }, ...pair.map(side)));
}

function side(row) {
  const reward = rollouts.reward[row];
  const facts = [["reward", number(reward, 2), mood(reward)], ["value", number(rollouts.value[row], 2)], ["baseline", number(rollouts.baseline[row], 2)], ["advantage", signed(rollouts.advantage[row])]];
  const parts = Object.entries(of("parts", row) ?? {}).map(([name, part]) => [name, number(part, 2)]);
  const listed = (pairs) => make("dl", {}, ...pairs.map(([name, text, look]) => make("div", {}, make("dt", {}, name), make("dd", { class: look || "" }, text))));
  return make("section", { class: "side" }, listed(facts), parts.length ? make("div", { class: "parts" }, make("span", { class: "soft" }, "parts of the reward"), listed(parts)) : null,
    of("cause", row) ? make("p", { class: "bad" }, `could not be graded: ${of("cause", row)}`) : null, tokensOf(row),
    rollouts.truncated[row] ? make("p", { class: "bad" }, "✂ cut off at the largest length") : null);
}

function tokensOf(row) {
  const [text, tokens] = [rollouts.completion[row], rollouts.tokens[row]];
  if (!tokens || !shaded) return make("pre", {}, text);
  const letters = Array.from(text); // lengths are in characters, not in the halves of them that JavaScript counts
  const pre = make("pre", {});
  const marks = Array.from(tokens);
  let start = 0;
  for (let at = 0; at < marks.length; at += 2) {
    const end = start + marks[at].codePointAt(0) - 48;
    const level = parseInt(marks[at + 1], 36); // the root of nats, in twelfths
    const piece = letters.slice(start, end).join("");
    if (piece) pre.append(level < 2 ? document.createTextNode(shown(piece)) : make("span", { class: "h" + Math.min(6, Math.ceil(level / 3)), title: `about ${((level / 12) ** 2).toFixed(2)} nats` }, piece));
    start = end;
  }
  if (start !== letters.length) pre.replaceChildren(document.createTextNode(shown(text)));
  return pre;
}

// Links: #rollout=STEP.ROW&kind=wrong&domain=...
function remember() {
  const said = new URLSearchParams(filters());
  if (chosen >= 0) said.set("rollout", `${rollouts.step[chosen]}.${rollouts.row[chosen]}`);
  history.replaceState(null, "", "#" + said);
}

function followHash() {
  if (!location.hash.includes("=") || !rollouts.rows) {
    const target = document.getElementById(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") target.open = true;
    return target?.scrollIntoView();
  }
  const said = new URLSearchParams(location.hash.slice(1));
  const form = byId("filters");
  form.reset();
  for (const [name, value] of said) if (form.elements[name]) form.elements[name].value = value;
  const [step, row] = (said.get("rollout") || "").split(".").map(Number);
  for (let at = 0; at < rollouts.rows; at++) if (rollouts.step[at] === step && rollouts.row[at] === row) chosen = at;
  refilter();
  if (order.includes(chosen)) choose(chosen);
  byId("rollouts").scrollIntoView();
}

byId("filters").addEventListener("input", () => (refilter(), remember()));
byId("filters").addEventListener("reset", () => setTimeout(() => (refilter(), remember())));
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("filters").elements.text.addEventListener("focus", () => (lowered ??= lowerCase()));
byId("list").addEventListener("scroll", showRows);
byId("list").addEventListener("keydown", (event) => {
  const page = Math.floor(byId("list").clientHeight / ROW_HEIGHT);
  const moves = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: page, PageUp: -page, Home: -order.length, End: order.length };
  if (!(event.key in moves) || !order.length) return;
  event.preventDefault();
  choose(order[Math.min(order.length - 1, Math.max(0, order.indexOf(chosen) + moves[event.key]))]);
});
addEventListener("keydown", (event) => {
  if (event.key === "/" && !["INPUT", "SELECT"].includes(document.activeElement.tagName)) {
    event.preventDefault();
    byId("filters").elements.text.focus();
  }
});
