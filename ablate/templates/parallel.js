(() => {
  "use strict";
  const svg = document.getElementById("parallel");
  if (!svg) return;
  const panel = document.getElementById("brushes");
  const said = document.getElementById("brushed");
  const reset = panel.querySelector("button");
  const top = Number(svg.dataset.top), height = Number(svg.dataset.height);
  const lines = [...svg.querySelectorAll(".arm")].reverse().map((path) => ({
    path,
    name: path.dataset.arm,
    at: path.dataset.at.split(" ").map((place) => (place === "-" ? null : Number(place))),
  }));
  const controls = [...panel.querySelectorAll("[data-axis]")];
  const ranges = new Map(); // axis -> [lowest place, highest place]

  function keeps(line) {
    return [...ranges].every(([axis, [low, high]]) => {
      const place = line.at[axis];
      return place !== null && place >= low - 0.002 && place <= high + 0.002;
    });
  }

  function show() {
    const kept = lines.filter(keeps);
    for (const line of lines) line.path.classList.toggle("out", !kept.includes(line));
    const names = kept.slice(0, 12).map((line) => line.name);
    const more = kept.length > 12 ? `, ${kept.length - 12} more` : "";
    const list = kept.length ? `: ${names.join(", ")}${more}` : "";
    said.textContent = ranges.size ? `${kept.length} of ${lines.length}${list}` : "";
    reset.disabled = !ranges.size;
  }

  function valueAt(control, place) {
    const low = Number(control.dataset.low), high = Number(control.dataset.high);
    const log = control.dataset.log === "1";
    const value = log ? low * (high / low) ** place : low + (high - low) * place;
    return value.toPrecision(3).replace(/\.?0+$/, "").replace(/e\+?(-?\d+)$/, "e$1");
  }

  function tell(axis) {
    const range = ranges.get(axis);
    const control = controls[axis];
    if (control.tagName === "SELECT") {
      const inside = [...control.options].filter(
        (o) => range && o.value && Number(o.value) >= range[0] && Number(o.value) <= range[1],
      );
      control.value = inside.length === 1 ? inside[0].value : "";
    } else {
      const above = control.dataset.above === "1"; // more is better: what is kept has at least this
      const limit = range ? range[above ? 0 : 1] : above ? 0 : 1;
      control.value = Math.round(100 * limit);
      control.nextElementSibling.value = range ? valueAt(control, limit) : "any";
    }
    const brush = svg.querySelector(`[data-axis="${axis}"] .brush`);
    brush.setAttribute("y", range ? top + height * (1 - range[1]) - 2 : top);
    brush.setAttribute("height", range ? height * (range[1] - range[0]) + 4 : 0);
  }

  function choose(axis, range) {
    if (range) ranges.set(axis, range);
    else ranges.delete(axis);
    tell(axis);
    show();
  }

  controls.forEach((control, axis) => {
    control.addEventListener("input", () => {
      const place = Number(control.value);
      if (control.tagName === "SELECT") choose(axis, control.value === "" ? null : [place, place]);
      else if (control.dataset.above === "1") choose(axis, place <= 0 ? null : [place / 100, 1]);
      else choose(axis, place >= 100 ? null : [0, place / 100]);
    });
    const hit = svg.querySelector(`[data-axis="${axis}"] .hit`);
    const placeOf = (event) => {
      const point = new DOMPoint(event.clientX, event.clientY);
      const y = point.matrixTransform(svg.getScreenCTM().inverse()).y;
      const place = 1 - (y - top) / height;
      return place > 0.96 ? 1 : place < 0.04 ? 0 : place; // the ends are easy to hit
    };
    let start = null;
    hit.addEventListener("pointerdown", (event) => {
      start = placeOf(event);
      hit.setPointerCapture(event.pointerId);
      event.preventDefault();
    });
    hit.addEventListener("pointermove", (event) => {
      if (start === null) return;
      const now = placeOf(event);
      choose(axis, [Math.min(start, now), Math.max(start, now)]);
    });
    for (const end of ["pointerup", "pointercancel"])
      hit.addEventListener(end, (event) => {
        if (start !== null && Math.abs(placeOf(event) - start) < 0.02) choose(axis, null);
        start = null;
      });
  });
  reset.addEventListener("click", () => [...ranges.keys()].forEach((axis) => choose(axis, null)));
  panel.hidden = false;
  svg.classList.add("live");
  show();
})();
