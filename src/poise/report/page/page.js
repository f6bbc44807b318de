// Where the data come from, the theme, and links into the page.

const LIVE = !byId("head-data").textContent;

async function unpacked(id) {
  const text = byId(id).textContent;
  const bytes = Uint8Array.fromBase64 ? Uint8Array.fromBase64(text) : Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

async function asked(name) {
  const answer = await fetch(name, { cache: "no-cache" });
  if (!answer.ok) throw new Error(`${answer.status}`);
  return { mark: answer.headers.get("ETag"), data: await answer.json() };
}

let marks = { head: null, rollouts: null };
async function watch() {
  if (!document.hidden) {
    try {
      const head = await asked("head");
      if (head.mark !== marks.head) {
        const open = [...document.querySelectorAll("details")].map((each) => each.open);
        const at = scrollY;
        showHead(head.data);
        document.querySelectorAll("details").forEach((each, index) => (each.open = open[index] || false));
        scrollTo(0, at);
        const rollouts = await asked("rollouts");
        if (rollouts.mark !== marks.rollouts) showRollouts(rollouts.data);
        marks = { head: head.mark, rollouts: rollouts.mark };
      }
      if (head.data.finished) return;
    } catch (error) {
      fill("state", "connection lost");
    }
  }
  setTimeout(watch, 5000);
}

function toTheme(theme) {
  document.documentElement.dataset.theme = theme;
  drawn.forEach((draw) => draw());
}
const isDark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
byId("theme").addEventListener("click", () => toTheme(isDark() ? "light" : "dark"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach((draw) => draw()));

addEventListener("hashchange", followHash);
(async () => {
  if (LIVE) return watch();
  showHead(await unpacked("head-data"));
  await new Promise(requestAnimationFrame);
  showRollouts(await unpacked("rollout-data"));
  document.documentElement.dataset.ready = "yes";
})();
