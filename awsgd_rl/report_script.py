"""The script of a report's page. It reads numbers, and writes no HTML."""

from typing import Final

SCRIPT: Final = r"""
"use strict";
(() => {
  const read = id => {
    const element = document.getElementById(id);
    return element ? JSON.parse(element.textContent) : {};
  };
  const figures = read("figure-data"), recordings = read("recording-data");

  // ---- curves ---------------------------------------------------------------------------------
  const config = { responsive: true, displaylogo: false,
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };

  function drawFigure(element, failures) {
    const figure = figures[element.id], layout = structuredClone(figure.layout);
    let traces = figure.traces;
    if (failures && figure.kind === "success") {
      // Half of the smallest failure that was seen stands for none: a log scale has no 0.
      const seen = traces.flatMap(t => t.y).filter(v => v !== null && v < 1).map(v => 1 - v);
      const floor = Math.max(1e-12, Math.min(1, ...seen) / 2);
      const fails = v => v === null ? v : Math.max(1 - v, floor);
      traces = traces.map(t => ({ ...t, y: t.y.map(fails) }));
      layout.yaxis = { ...layout.yaxis, type: "log", range: [Math.log10(floor), 0], dtick: 1,
        tickformat: "~%", hoverformat: ".2~%", title: { text: "failure probability, log scale" } };
      layout.title.text = layout.title.text.replace(/^Success/, "Failure");
    }
    Object.assign(layout, { hovermode: "x unified", paper_bgcolor: "#fff", plot_bgcolor: "#fff",
      font: { family: "system-ui, sans-serif", size: 13, color: "#222" },
      margin: { l: 64, r: 14, t: 42, b: 52 },
      legend: { orientation: "h", x: 0, y: -0.32, yanchor: "top", font: { size: 12 } } });
    layout.title.font = { size: 15 };
    layout.hoverlabel = { namelength: -1 };
    element.dataset.shapes = JSON.stringify(layout.shapes);
    return Plotly.react(element, traces, layout, config);
  }

  document.querySelectorAll(".plot").forEach(element => drawFigure(element, false));
  document.querySelectorAll(".failures input").forEach(box => box.addEventListener("change", () =>
    box.closest(".curves").querySelectorAll(".plot").forEach(e => drawFigure(e, box.checked))));

  // ---- maps -----------------------------------------------------------------------------------
  const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const words = text => new Uint32Array(bytes(text).buffer);
  const STEP = [[-1, 0], [0, 1], [1, 0], [0, -1]];  // left, down, right, up; y grows downwards
  const ARROWS = ["←", "↓", "→", "↑"], ENDS = ["goal", "trap", "cut off"];
  const HEAT = ["#FFFFFF", "#CFE3F2", "#4A98C9", "#08306B"];
  const WEIGHT = ["#F3D9A4", "#E69F00", "#D55E00", "#5C1A00"];
  const WHITE_BELOW = 0.01;  // visits, where the heat begins

  function mix(stops, at) {
    const place = Math.min(Math.max(at, 0), 1) * (stops.length - 1);
    const k = Math.min(Math.floor(place), stops.length - 2), part = place - k;
    const channel = (color, i) => parseInt(color.slice(1 + 2 * i, 3 + 2 * i), 16);
    const parts = [0, 1, 2].map(i =>
      Math.round(channel(stops[k], i) * (1 - part) + channel(stops[k + 1], i) * part));
    return `rgb(${parts.join(",")})`;
  }

  const whole = n => n.toLocaleString("en-US");
  function percent(p) {
    if (p > 0 && p < 1e-7) return "less than 0.00001%";
    return `${(100 * p).toLocaleString("en-US", { maximumSignificantDigits: 2 })}%`;
  }

  class Recording {
    constructor(element, data) {
      this.element = element;
      this.data = data;
      this.slider = element.querySelector("input[type=range]");
      this.output = element.querySelector("output");
      this.button = element.querySelector("button");
      this.readout = element.querySelector(".readout");
      this.canvases = [...element.querySelectorAll("canvas")];
      this.captions = [...element.querySelectorAll("figcaption span")];
      this.table = element.querySelector(".drawn tbody");
      const least = Math.log(data.visits[0]), span = Math.log(data.visits[1]) - least;
      this.visits = Array.from({ length: 256 }, (_, b) =>
        b === 0 ? 0 : Math.exp(least + span * (b - 1) / 254));
      const white = Math.log(WHITE_BELOW), range = Math.log(data.visits[1]) - white;
      this.heat = this.visits.map(v => mix(HEAT, v === 0 ? 0 : (Math.log(v) - white) / range));
      this.decoded = new Map();
      this.marked = null;
      this.timer = null;
      this.slider.addEventListener("input", () => { this.stop(); this.show(); });
      this.button.addEventListener("click", () => this.timer ? this.stop() : this.play());
      this.canvases.forEach((canvas, k) => {
        canvas.addEventListener("mousemove", event => this.point(canvas, k, event));
        canvas.addEventListener("mouseleave", () => { this.readout.textContent = ""; });
      });
      new ResizeObserver(() => this.draw()).observe(element);
      element.closest("section").querySelectorAll(".plot[data-training]").forEach(plot =>
        plot.on("plotly_click", event => this.seek(event.points[0].x)));
      this.show();
    }

    get frame() {
      const number = Number(this.slider.value);
      if (!this.decoded.has(number)) {
        const raw = this.data.frames[number];
        this.decoded.set(number, { ...raw, moves: words(raw.moves), policies: raw.policies.map(p =>
          ({ success: p.success, actions: bytes(p.actions), visits: bytes(p.visits) })) });
      }
      return this.decoded.get(number);
    }

    seek(episodes) {
      const distance = frame => Math.abs(Math.log((frame.episodes + 1) / (episodes + 1)));
      const near = this.data.frames.map(distance);
      this.slider.value = near.indexOf(Math.min(...near));
      this.stop();
      this.show();
    }

    play() {
      const last = this.data.frames.length - 1;
      if (Number(this.slider.value) === last) this.slider.value = 0;
      this.show();
      this.button.textContent = "Pause";
      this.timer = setInterval(() => {
        this.slider.value = Number(this.slider.value) + 1;
        this.show();
        if (Number(this.slider.value) === last) this.stop();
      }, 350);
    }

    stop() {
      clearInterval(this.timer);
      this.timer = null;
      this.button.textContent = "Play";
    }

    show() {
      const frame = this.frame, number = Number(this.slider.value);
      const when = `after ${whole(frame.episodes)} episodes, ${whole(frame.timesteps)} steps`;
      this.output.textContent = `${when} (${number + 1} of ${this.data.frames.length})`;
      this.slider.setAttribute("aria-valuetext", when);
      this.draw();
      this.canvases.slice(0, -1).forEach((_, k) => {
        const policy = frame.policies[k];
        this.captions[k].textContent =
          policy ? `fails with probability ${percent(1 - policy.success)}` : "draws nothing";
      });
      const byTarget = frame.fromTarget.reduce((a, b) => a + b, 0);
      const byOther = frame.fromTarget.length - byTarget;
      this.captions[this.captions.length - 1].textContent =
        `${byTarget} drawn by P_w` + (byOther ? `, ${byOther} by Q_τ (dashed)` : "");
      this.canvases.forEach((canvas, k) =>
        canvas.setAttribute("aria-label", `${canvas.dataset.name} ${when}: ` +
          this.captions[k].textContent));
      this.fillTable(frame);
      this.markCurves(frame.episodes);
    }

    draw() {  // the maps alone: the list keeps its focus while the page changes its size
      const frame = this.frame;
      this.canvases.slice(0, -1).forEach((canvas, k) => {
        const policy = frame.policies[k];
        if (policy) this.drawPolicy(canvas, policy); else this.begin(canvas);
      });
      this.drawTrajectories(this.canvases[this.canvases.length - 1], frame);
    }

    begin(canvas) {
      const { rows, columns } = this.data, ratio = window.devicePixelRatio || 1;
      const width = Math.max(canvas.clientWidth, 40), cell = width / columns;
      canvas.style.height = `${cell * rows}px`;
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(cell * rows * ratio);
      const pen = canvas.getContext("2d");
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.fillStyle = "#fff";
      pen.fillRect(0, 0, width, cell * rows);
      return [pen, cell];
    }

    lines(pen, cell) {
      const { rows, columns } = this.data;
      if (cell < 5) return;
      pen.strokeStyle = "#DDDDDD";
      pen.lineWidth = 0.5;
      pen.beginPath();
      const line = (x, y, right, bottom) => {
        pen.moveTo(x * cell, y * cell);
        pen.lineTo(right * cell, bottom * cell);
      };
      for (let x = 1; x < columns; x++) line(x, 0, x, rows);
      for (let y = 1; y < rows; y++) line(0, y, columns, y);
      pen.stroke();
    }

    cells(pen, cell) {
      const { columns, start, goals, traps } = this.data;
      const at = state => [(state % columns) * cell, Math.floor(state / columns) * cell];
      for (const state of traps) {
        const [x, y] = at(state), a = 0.3 * cell, b = 0.7 * cell;
        pen.fillStyle = "#B03A2E";
        pen.fillRect(x, y, cell, cell);
        pen.strokeStyle = "#fff";
        pen.lineWidth = Math.max(0.8, 0.09 * cell);
        pen.beginPath();
        pen.moveTo(x + a, y + a); pen.lineTo(x + b, y + b);
        pen.moveTo(x + b, y + a); pen.lineTo(x + a, y + b);
        pen.stroke();
      }
      for (const state of goals) {
        const [x, y] = at(state), cx = x + cell / 2, cy = y + cell / 2;
        pen.fillStyle = "#1E8449";
        pen.fillRect(x, y, cell, cell);
        pen.fillStyle = "#fff";
        pen.beginPath();
        for (let k = 0; k < 10; k++) {
          const radius = cell * (k % 2 ? 0.14 : 0.34), turn = Math.PI * (k / 5 - 0.5);
          pen.lineTo(cx + radius * Math.cos(turn), cy + radius * Math.sin(turn));
        }
        pen.fill();
      }
      const [x, y] = at(start);
      pen.strokeStyle = "#222";
      pen.lineWidth = Math.max(1, Math.min(2, 0.09 * cell));
      pen.strokeRect(x + 0.06 * cell, y + 0.06 * cell, 0.88 * cell, 0.88 * cell);
    }

    drawPolicy(canvas, policy) {
      const { rows, columns } = this.data, [pen, cell] = this.begin(canvas);
      for (let s = 0; s < rows * columns; s++) {
        if (policy.visits[s] === 0) continue;
        pen.fillStyle = this.heat[policy.visits[s]];
        // A little over, so that no seam shows between two cells.
        pen.fillRect((s % columns) * cell, Math.floor(s / columns) * cell, cell + 0.4, cell + 0.4);
      }
      this.lines(pen, cell);
      // Where cells are too small for an arrow, one stands for a block of them.
      const block = Math.max(1, Math.ceil(9 / cell));
      for (let top = 0; top < rows; top += block)
        for (let left = 0; left < columns; left += block)
          this.arrow(pen, cell, policy, top, left, block);
      this.cells(pen, cell);
    }

    arrow(pen, cell, policy, top, left, block) {
      const { rows, columns } = this.data;
      let dx = 0, dy = 0, mass = 0, most = 0;
      for (let y = top; y < Math.min(top + block, rows); y++)
        for (let x = left; x < Math.min(left + block, columns); x++) {
          const s = y * columns + x, visits = this.visits[policy.visits[s]];
          for (let a = 0; a < 4; a++) {
            const share = visits * policy.actions[4 * s + a] / 255;
            dx += share * STEP[a][0];
            dy += share * STEP[a][1];
          }
          mass += visits;
          most = Math.max(most, visits);
        }
      // A policy says nothing where it never was: its first values still stand there.
      if (most <= this.data.visits[0] || Math.hypot(dx, dy) <= 0.1 * mass) return;
      const length = 0.8 * cell * block;
      this.arrowFrom(pen, (left + block / 2) * cell - dx / mass * length / 2,
        (top + block / 2) * cell - dy / mass * length / 2, dx / mass * length, dy / mass * length,
        Math.max(0.8, 0.09 * cell * block), most > 0.25 ? "#fff" : "#3A3A3A");
    }

    arrowFrom(pen, x, y, dx, dy, width, color) {
      const length = Math.hypot(dx, dy), head = Math.min(4.2 * width, length);
      const ux = dx / length, uy = dy / length, bx = x + dx - ux * head, by = y + dy - uy * head;
      pen.strokeStyle = pen.fillStyle = color;
      pen.lineWidth = width;
      pen.beginPath();
      pen.moveTo(x, y);
      pen.lineTo(bx, by);
      pen.stroke();
      pen.beginPath();
      pen.moveTo(x + dx, y + dy);
      pen.lineTo(bx - uy * head / 2, by + ux * head / 2);
      pen.lineTo(bx + uy * head / 2, by - ux * head / 2);
      pen.fill();
    }

    lineFrom(pen, x, y, dx, dy, width, color) {
      pen.strokeStyle = color;
      pen.lineWidth = width;
      pen.lineCap = "round";
      pen.beginPath();
      pen.moveTo(x, y);
      pen.lineTo(x + dx, y + dy);
      pen.stroke();
      pen.lineCap = "butt";
    }

    weightColor(weight) {
      const most = this.data.weight;
      return mix(WEIGHT, !this.data.logWeights ? weight / most :
        Math.log(Math.max(weight, 1e-3) / 1e-3) / Math.log(most / 1e-3));
    }

    byWeight(frame) {  // the heaviest last, and so on top
      const numbers = frame.weights.map((_, k) => k);
      return numbers.sort((a, b) => frame.weights[a] - frame.weights[b]);
    }

    drawTrajectories(canvas, frame) {
      const { rows, columns } = this.data, [pen, cell] = this.begin(canvas);
      this.lines(pen, cell);
      this.cells(pen, cell);
      this.byWeight(frame).forEach((k, rank, all) => {
        pen.globalAlpha = this.marked === null || this.marked === k ? 1 : 0.12;
        // Each a little aside, so that trajectories through the same cells lie side by side.
        const aside = 0.5 + 0.6 * ((rank + 0.5) / all.length - 0.5);
        const color = this.weightColor(frame.weights[k]);
        const width = Math.max(0.8, Math.min(1.8, 0.06 * cell)) * (this.marked === k ? 1.6 : 1);
        pen.setLineDash(frame.fromTarget[k] ? [] : [2.5 * width, 2 * width]);
        for (let e = frame.offsets[k]; e < frame.offsets[k + 1]; e++) {
          const state = frame.moves[e] >> 2, [dx, dy] = STEP[frame.moves[e] & 3];
          const x = state % columns, y = Math.floor(state / columns);
          // A move off the grid stays where it is.
          if (x + dx < 0 || x + dx >= columns || y + dy < 0 || y + dy >= rows) continue;
          const left = (x + aside) * cell, top = (y + aside) * cell;
          // The heads of a dozen trajectories would hide each other.
          const draw = this.marked === k ? this.arrowFrom : this.lineFrom;
          draw(pen, left, top, dx * cell, dy * cell, width, color);
        }
      });
      pen.setLineDash([]);
      pen.globalAlpha = 1;
    }

    fillTable(frame) {
      this.table.replaceChildren(...this.byWeight(frame).reverse().map(k => {
        const row = document.createElement("tr"), swatch = document.createElement("span");
        row.tabIndex = 0;
        swatch.className = "swatch";
        swatch.style.background = this.weightColor(frame.weights[k]);
        const texts = [frame.weights[k].toPrecision(3), frame.fromTarget[k] ? "P_w" : "Q_τ",
          whole(frame.lengths[k]), ENDS[frame.ends[k]]];
        const first = document.createElement("td");
        first.append(swatch);
        row.append(first, ...texts.map(text => {
          const cell = document.createElement("td");
          cell.textContent = text;
          return cell;
        }));
        const mark = which => () => {
          this.marked = which;
          this.drawTrajectories(this.canvases[this.canvases.length - 1], this.frame);
        };
        for (const on of ["mouseenter", "focus"]) row.addEventListener(on, mark(k));
        for (const off of ["mouseleave", "blur"]) row.addEventListener(off, mark(null));
        return row;
      }));
    }

    point(canvas, k, event) {
      const { rows, columns } = this.data, box = canvas.getBoundingClientRect();
      const x = Math.floor((event.clientX - box.left) / box.width * columns);
      const y = Math.floor((event.clientY - box.top) / box.height * rows), s = y * columns + x;
      if (x < 0 || y < 0 || x >= columns || y >= rows) return;
      const policy = this.frame.policies[k];
      let text = `row ${y + 1}, column ${x + 1}`;
      if (this.data.traps.includes(s)) text += ": trap";
      else if (this.data.goals.includes(s)) text += ": goal";
      if (policy) {
        const level = policy.visits[s], visits = this.visits[level];
        const seldom = level === 0 ? "under " : level === 255 ? "over " : "";
        const shown = (level === 0 ? this.data.visits[0] : visits).toPrecision(2);
        text += ` · ${canvas.dataset.name}: ` + ARROWS.map((arrow, a) =>
          `${arrow} ${Math.round(policy.actions[4 * s + a] / 2.55)}%`).join("  ") +
          ` · ${seldom}${Number(shown)} visits an episode`;
      }
      this.readout.textContent = text;
    }

    markCurves(episodes) {
      cancelAnimationFrame(this.pending);
      this.pending = requestAnimationFrame(() => {
        const line = { type: "line", yref: "paper", y0: 0, y1: 1, x0: episodes, x1: episodes,
          line: { color: "#8A8A8A", width: 1 } };
        this.element.closest("section").querySelectorAll(".plot[data-training]").forEach(plot => {
          const shapes = JSON.parse(plot.dataset.shapes);
          Plotly.relayout(plot, { shapes: episodes > 0 ? [...shapes, line] : shapes });
        });
      });
    }
  }

  document.querySelectorAll(".recording").forEach(element =>
    new Recording(element, recordings[element.id]));
})();
"""
