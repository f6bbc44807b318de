// Everything above the rollouts, from the head of the data.

function showHead(head) {
  document.title = shown(head.name) + " · poise";
  fill("name", shown(head.name));
  fill("state", head.finished ? "finished" : LIVE ? "live" : "unfinished");
  byId("state").className = "badge " + (head.finished ? "good" : "");
  const facts = head.facts;
  const minutes = facts.seconds == null ? null : `${Math.floor(facts.seconds / 60)} min ${Math.round(facts.seconds % 60)} s`;
  fill("facts", document.createTextNode(shown([
    facts.preset && `baseline ${facts.preset}`, facts.model && `model ${facts.model}`, facts.task && `task ${facts.task}`,
    `${number(facts.steps)} steps`, `${number(facts.rollouts)} rollouts`, facts.tokens && `${number(facts.tokens)} tokens`, minutes,
    facts.seed != null && `seed ${facts.seed}`,
  ].filter(Boolean).join(" · "))));
  byId("notes").hidden = !head.notes.length;
  fill("notes", ...head.notes.map((note) => make("li", {}, note)));
  fill("answers", ...head.answers.map((each, at) =>
    make("a", { class: "card answer " + each.mood, href: "#" + each.place },
      make("span", { class: "question" }, `${at + 1}. ${each.question}`), make("b", {}, each.answer), make("span", {}, each.detail))));
  drawn.length = 0;
  for (const section of ["learning", "domains", "baseline", "values", "health"]) {
    fill("charts-" + section, ...head.charts.filter((chart) => chart.section === section).map(figure));
  }
  showDomains(head.domains);
  fill("gains", ...head.gains.map((gain) =>
    make("div", { class: "card gain " + (gain.high < 1 ? "good" : gain.low > 1 ? "bad" : "") },
      make("span", { class: "soft" }, `Noise against ${gain.against}`),
      make("b", {}, number(gain.ratio, 2)), make("span", { class: "soft" }, `95 %: ${number(gain.low, 2)} to ${number(gain.high, 2)}`),
      make("p", {}, gain.sentence))));
  if (!head.gains.length) fill("gains", make("p", { class: "missing" }, "Too little data yet to compare the baseline with others."));
  byId("example").hidden = !head.example;
  if (head.example) {
    fill("example", document.createTextNode(shown(head.example.sentence) + " "), make("a", { href: "#why" }, "Why"),
      document.createTextNode(" · "), make("a", { href: `#rollout=${head.example.step}.${head.example.row}` }, "this rollout"));
  }
  byId("little").hidden = !head.little_to_know;
  showEvidence(head.evidence);
  fill("alarm-list", ...(head.alarms.length
    ? head.alarms.map((alarm) => make("li", { class: "bad" }, make("b", {}, alarm.name), ": " + alarm.sentence + "."))
    : [make("li", { class: "good" }, "No alarm: rewards vary, entropy and lengths are in range, and what cannot be graded is rare.")]));
  fill("again", ...(head.again ? ["Again: ", make("code", {}, head.again)] : [make("span", { class: "missing" }, "There is no config.yaml.")]));
  const versions = Object.entries(head.versions).map(([name, version]) => `${name} ${version}`).join(", ");
  fill("versions", document.createTextNode(shown(versions || "Versions stand in summary.json, which is not there yet.")));
  fill("config", document.createTextNode(shown(head.config || "There is no config.yaml.")));
}

function showDomains(domains) {
  if (!domains.length) return fill("domains");
  const rows = domains.map(([name, before, after]) => [name, number(before), number(after), signed(after - before, 3)]);
  fill("domains", make("h3", {}, "Held-out accuracy by domain"), table(["domain", "before", "last", "change"], rows, "Held-out accuracy by domain"));
}

const EVIDENCE = ["zero", "constant", "sibling_reward", "scalars", "prompt", "sibling", "all"];
const MEANING = {
  zero: "no baseline at all", constant: "one number a domain", sibling_reward: "the siblings' rewards", scalars: "entropies and lengths",
  prompt: "hidden states of the prompt", sibling: "hidden states of the siblings' completions", all: "all of it",
};

function showEvidence(strips) {
  if (!strips.length) return fill("evidence");
  const last = Math.max(...strips.flatMap((strip) => strip.runs.map((run) => run[1])));
  const came = new Set();
  const rows = strips.map((strip) =>
    make("div", { class: "strip" }, make("span", {}, strip.domain),
      make("div", { role: "img", "aria-label": strip.runs.map(([from, , what]) => `${what} from step ${from}`).join(", ") },
        ...strip.runs.map(([from, to, what]) => {
          came.add(what);
          const cell = make("i", { class: "level" + EVIDENCE.indexOf(what), title: `${strip.domain}: ${what} from step ${from}` });
          cell.style.flexGrow = (to - from) / last;
          return cell;
        }))));
  const legend = EVIDENCE.filter((each) => came.has(each)).map((each) =>
    make("li", {}, make("i", { class: "level" + EVIDENCE.indexOf(each) }), `${each}: ${MEANING[each]}`));
  const numbers = strips.flatMap((strip) => strip.runs.map(([from, to, what]) => [strip.domain, what, number(from), number(to)]));
  fill("evidence", make("figure", { class: "card" }, make("h3", {}, "What the baselines rest on"), ...rows, make("ul", { class: "legend" }, ...legend),
    make("figcaption", {}, "Chosen for each domain by what it would have cost so far. Zero or a constant late in a run is no failure: where nearly all is solved there is little left to know."),
    make("details", { class: "numbers" }, make("summary", {}, "Numbers"), table(["domain", "evidence", "from step", "to"], numbers, "What the baselines rest on"))));
}
