// The page without this is the same, as of its loading.
const pause = document.createElement("button");
const word = document.getElementById("word");
let paused = false;
pause.type = "button";
pause.textContent = "Pause";
pause.addEventListener("click", () => {
  paused = !paused;
  pause.textContent = paused ? "Resume" : "Pause";
});
word.before(pause);
setInterval(async () => {
  if (paused || document.hidden) return;
  try {
    const answer = await fetch(location.pathname, { cache: "no-store", signal: AbortSignal.timeout(4000) });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.querySelector("main");
    if (!answer.ok || !fresh) throw new Error();
    document.querySelector("main").replaceWith(document.adoptNode(fresh));
    word.textContent = "The page refreshes automatically.";
  } catch {
    word.textContent = "usher does not answer: this is what it said last.";
  }
}, 5000);
