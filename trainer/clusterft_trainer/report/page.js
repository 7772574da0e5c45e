"use strict";
// Values under the pointer. Nothing on the page needs it.
(() => {
  const gap = "\u202f";
  const plain = (v) => {
    if (v === 0) return "0";
    const a = Math.abs(v);
    if (a < 1e-3) return v.toExponential(2).replace(/\.?0+e/, "e");
    if (a >= 1000) return whole(v);
    return v.toPrecision(4);
  };
  const whole = (v) => Math.round(v).toString().replace(/\B(?=(\d{3})+$)/g, gap);
  const size = (v) => {
    for (const unit of ["B", "kB", "MB", "GB"]) {
      if (Math.abs(v) < 999.5) return (v < 99.95 && unit !== "B" ? v.toPrecision(3) : v.toFixed(0)) + gap + unit;
      v /= 1000;
    }
    return v.toPrecision(3) + gap + "TB";
  };
  const time = (v) => {
    if (v < 60) return v.toFixed(v < 10 ? 1 : 0) + gap + "s";
    if (v < 3600) return Math.floor(v / 60) + gap + "min " + Math.floor(v % 60) + gap + "s";
    if (v < 86400) return Math.floor(v / 3600) + gap + "h " + Math.floor((v % 3600) / 60) + gap + "min";
    return Math.floor(v / 86400) + gap + "d " + Math.floor((v % 86400) / 3600) + gap + "h";
  };
  const units = {
    number: plain, small: plain, count: whole, bytes: size, rate: (v) => size(v) + "/s", seconds: time,
    share: (v) => (v * 100).toFixed(Math.abs(v) < 0.0995 ? 1 : 0) + gap + "%",
    degrees: (v) => v.toFixed(0) + gap + "°C", watts: (v) => v.toFixed(0) + gap + "W",
  };
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] < x) low = middle; else high = middle;
    }
    return xs.length && Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
  };
  const line = (name, value, colour) => {
    const row = document.createElement("div");
    if (colour) {
      const dot = document.createElement("i");
      row.className = colour;
      row.append(dot);
    }
    const words = document.createElement("span"), figure = document.createElement("b");
    words.textContent = name + " ";
    figure.textContent = value;
    words.append(figure);
    row.append(words);
    return row;
  };
  for (const figure of document.querySelectorAll("figure[data-chart]")) {
    const plane = figure.querySelector(".plane");
    let chart = null;
    const cursor = document.createElement("div"), tip = document.createElement("div");
    cursor.className = "cursor";
    tip.className = "tip";
    const leave = () => { cursor.remove(); tip.remove(); };
    const move = (event) => {
      chart = chart || JSON.parse(figure.dataset.chart);
      const box = plane.getBoundingClientRect();
      const [low, high, unit] = chart.x;
      const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      const x = low + share * (high - low);
      const rows = [];
      let where = null;
      for (const [name, colour, kind, xs, ys] of chart.s) {
        const i = nearest(xs, x);
        if (i < 0 || Math.abs(xs[i] - x) > (high - low) * 0.03) continue;
        if (where === null) where = xs[i];
        rows.push(line(name.replace(/ [\d.]+\u202f%$/, ""), units[kind](ys[i]), colour));
      }
      if (where === null) return leave();
      const title = unit === "count" ? "step " + whole(where) : units[unit](where) + " after the start";
      tip.replaceChildren(line("", title), ...rows);
      const left = (where - low) / (high - low);
      cursor.style.left = left * 100 + "%";
      plane.append(cursor, tip);
      // Beside the line on its roomier side, and never beyond the chart.
      const room = box.width - tip.offsetWidth, place = left * box.width;
      tip.style.left = Math.max(0, Math.min(room, left > 0.5 ? place - tip.offsetWidth - 10 : place + 10)) + "px";
    };
    plane.addEventListener("pointermove", move);
    plane.addEventListener("pointerdown", move);
    plane.addEventListener("pointerleave", leave);
  }
  document.documentElement.dataset.ready = "1";
})();
