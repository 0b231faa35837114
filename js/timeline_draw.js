/** What the timeline looks like: everything is drawn from a state that others keep. */

import { bars, lanes, stretches, ticks, xOf } from "./timeline_view.js";

const GUTTER = 86; // pixels at the left for the names of curves; like all that holds text it grows with the text
const RULER = 18, BAR = 17, SCROLL = 10, MOST_BAR_ROWS = 4;
const DENSE = 0.5; // frames per device pixel from which curves are columns
const CURVE_MARGIN = 0.12; // of a lane's height above and below what its curve reaches

/** Colours of ComfyUI's theme, and of curves that can be told apart on it. */
export function themeOf(element) {
    const style = getComputedStyle(element);
    const get = (...names) => names.map((name) => style.getPropertyValue(name).trim()).find(Boolean);
    const text = get("--input-text", "--fg-color") ?? "#ddd";
    const ground = get("--comfy-input-bg", "--bg-color") ?? "#222";
    const isDark = luminance(ground) < 0.4;
    return {
        text, ground, isDark,
        dim: get("--descrip-text") ?? "#999",
        edge: get("--border-color") ?? "#4e4e4e",
        lane: isDark ? "rgba(255,255,255,0.035)" : "rgba(0,0,0,0.035)",
        grid: isDark ? "rgba(255,255,255,0.10)" : "rgba(0,0,0,0.12)",
        sound: isDark ? "#7d8799" : "#8a94a6",
        speech: isDark ? "rgba(96,165,250,0.16)" : "rgba(37,99,235,0.12)",
        selection: isDark ? "rgba(250,204,21,0.16)" : "rgba(202,138,4,0.18)",
        selectionEdge: isDark ? "#facc15" : "#a16207",
        playhead: isDark ? "#f87171" : "#dc2626",
        before: isDark ? "rgba(255,255,255,0.28)" : "rgba(0,0,0,0.28)",
        bar: isDark ? "#3b5b8c" : "#bfd3f2",
        barText: isDark ? "#eef4ff" : "#10233f",
        chosen: isDark ? "#facc15" : "#a16207",
        curves: isDark ? ["#fb923c", "#4ade80", "#60a5fa", "#e879f9", "#f472b6"] : ["#c2410c", "#15803d", "#1d4ed8", "#a21caf", "#be185d"],
        numbers: isDark ? "#9fb3c8" : "#475569",
    };
}

function luminance(colour) {
    const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b] = context.getImageData(0, 0, 1, 1).data;
    return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
}

/** A canvas's context in CSS pixels, as sharp as the screen shows it. */
export function fitted(canvas, sharp) {
    const width = Math.round(canvas.clientWidth * sharp), height = Math.round(canvas.clientHeight * sharp);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    context.setTransform(sharp, 0, 0, sharp, 0, 0);
    return context;
}

/** Pixels left of the curves. */
export function gutterOf(state) {
    return Math.round(GUTTER * state.fontScale);
}

/** Where the lanes lie, for a state with data. */
export function placed(state, height) {
    const { fontScale } = state;
    const rows = Math.min(Math.max(0, ...bars(state.items ?? [], state.track.frames).map((bar) => bar.row + 1)), MOST_BAR_ROWS);
    const wanted = [{ key: "ruler", height: RULER * fontScale }];
    if (state.track.level) wanted.push({ key: "sound", height: 34, grows: true });
    state.track.curves.forEach((curve, i) => {
        if (!curve.group) wanted.push({ key: `curve ${i}`, height: i ? 38 : 62, grows: true });
    });
    wanted.push({ key: "group", height: 18 * fontScale });
    if (state.isOpen) {
        state.track.curves.forEach((curve, i) => curve.group && wanted.push({ key: `curve ${i}`, height: 22, grows: true }));
    }
    wanted.push({ key: "edits", height: (BAR * Math.max(rows, 1) + 4) * fontScale }, { key: "scroll", height: SCROLL });
    return lanes(wanted, height);
}

/** The value at a height of a lane, and the height of a value: what a curve's lane shows of it. */
export function scaleOf(curve, lane) {
    const room = lane.height * (1 - 2 * CURVE_MARGIN), span = Math.max(curve.high - curve.low, 1e-6);
    const bottom = lane.top + lane.height * (1 - CURVE_MARGIN);
    return {
        y: (value) => Math.min(Math.max(bottom - ((value - curve.low) / span) * room, lane.top + 1), lane.top + lane.height - 1),
        value: (y) => curve.low + ((bottom - y) / room) * span,
    };
}

/**
 * Draws all of it.
 * @param {CanvasRenderingContext2D} context Scaled so that one unit is one CSS pixel.
 * @param {object} state See timeline.js.
 * @param {import("./timeline_columns.js").Columns} columns For what is too dense for a path.
 */
export function draw(context, state, width, height, theme, words, columns) {
    context.clearRect(0, 0, width, height);
    context.fillStyle = theme.ground;
    context.fillRect(0, 0, width, height);
    const { fontScale } = state, font = (size) => (context.font = `${Math.round(size * fontScale)}px system-ui, sans-serif`);
    const pen = { context, theme, words, font, width, height, fontScale, gutter: gutterOf(state), columns };
    pen.sharp = context.getTransform().a;
    if (!state.track) return message(pen, state);
    const places = placed(state, height), view = state.view;
    columns.begin(context.canvas.width, context.canvas.height);
    grounds(pen, state, places);
    for (const lane of places) {
        if (lane.key === "ruler") ruler(pen, state, lane);
        if (lane.key === "sound") sound(pen, state, lane);
        if (lane.key.startsWith("curve")) curveLane(pen, state, lane, Number(lane.key.slice(6)));
        if (lane.key === "group") groupHeader(pen, state, lane);
        if (lane.key === "edits") edits(pen, state, lane);
        if (lane.key === "scroll") scrollBar(pen, state, lane);
    }
    columns.end(context);
    const top = places[0].height, bottom = places.at(-1).top;
    clipped(pen, 0, bottom, () => {
        if (state.selection) selection(pen, view, state.selection, top, bottom);
        const x = pen.gutter + xOf(view, state.playhead + 0.5);
        line(context, x, 0, x, bottom, theme.playhead, 1.5);
    });
}

function message({ context, theme, words, font, width, height }, state) {
    context.fillStyle = theme.dim;
    context.textAlign = "center";
    context.textBaseline = "middle";
    font(13);
    wrapped(context, words(state.messageKey ?? "empty"), width - 40).forEach((row, i, all) =>
        context.fillText(row, width / 2, height / 2 + (i - (all.length - 1) / 2) * 20));
}

function wrapped(context, text, width) {
    const rows = [""];
    for (const part of text.split(/(?<=[\s，。；])/)) {
        if (context.measureText(rows.at(-1) + part).width > width && rows.at(-1)) rows.push("");
        rows[rows.length - 1] += part;
    }
    return rows;
}

function clipped({ context, width, gutter }, top, height, paint) {
    context.save();
    context.beginPath();
    context.rect(gutter, top, width - gutter, height);
    context.clip();
    paint();
    context.restore();
}

function line(context, x0, y0, x1, y1, colour, weight = 1) {
    context.strokeStyle = colour;
    context.lineWidth = weight;
    context.beginPath();
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
    context.stroke();
}

function ruler(pen, { view, track }, lane) {
    const { context, theme, font, width, gutter } = pen;
    font(11);
    context.fillStyle = theme.dim;
    context.textAlign = "left";
    context.textBaseline = "middle";
    clipped(pen, lane.top, lane.height, () => {
        for (const { frame, label } of ticks(view, track.fps)) {
            const x = Math.round(gutter + xOf(view, frame)) + 0.5;
            line(context, x, lane.top, x, lane.top + lane.height, theme.edge);
            context.fillText(label, x + 4, lane.top + lane.height / 2 + 0.5);
        }
    });
    line(context, 0, lane.height - 0.5, width, lane.height - 0.5, theme.edge);
}

function name(pen, text, lane, colour, size = 12) {
    const { context, font, gutter } = pen;
    font(size);
    context.fillStyle = colour;
    context.textAlign = "left";
    context.textBaseline = "middle";
    context.fillText(text, 8, lane.top + lane.height / 2, gutter - 12);
}

/** The stripes that curves and sound lie on, with a line at each labelled time. */
function grounds(pen, { view, track }, places) {
    const { context, theme, width, gutter } = pen, striped = places.filter(({ key }) => key === "sound" || key.startsWith("curve"));
    context.fillStyle = theme.lane;
    for (const lane of striped) context.fillRect(gutter, lane.top + 1, width - gutter, lane.height - 2);
    context.fillStyle = theme.grid;
    for (const { frame } of ticks(view, track.fps)) {
        const x = Math.round(gutter + xOf(view, frame));
        if (x >= gutter) for (const lane of striped) context.fillRect(x, lane.top + 1, 1, lane.height - 2);
    }
}

function sound(pen, { view, track }, lane) {
    const { context, theme, words, gutter, columns, sharp } = pen;
    name(pen, words("sound"), lane, theme.dim);
    const middle = lane.top + lane.height / 2, reach = lane.height / 2 - 2;
    const rows = track.levelHz / track.fps; // rows of the envelope per frame
    clipped(pen, lane.top, lane.height, () => {
        context.fillStyle = theme.speech;
        for (const [start, stop] of track.speech) {
            if (stop < view.first || start > view.first + view.span) continue;
            const x = gutter + xOf(view, start);
            context.fillRect(x, lane.top + 1, gutter + xOf(view, stop) - x, lane.height - 2);
        }
    });
    const colour = columns.colour(theme.sound), wide = Math.round(view.width * sharp), left = Math.round(gutter * sharp);
    const { high, count } = stretches(track.level, view.first * rows, (view.span / wide) * rows, wide);
    for (let i = 0; i < count; i++) {
        columns.fill(left + i, (middle - high[i] * reach) * sharp, (middle + high[i] * reach) * sharp, 1, colour);
    }
}

function curveLane(pen, state, lane, index) {
    const { theme, words } = pen, { track, view } = state;
    const curve = track.curves[index], isNumber = Boolean(curve.group);
    const colour = isNumber ? theme.numbers : theme.curves[index % theme.curves.length];
    name(pen, words(curve.name), lane, colour, isNumber ? 10.5 : 12);
    const { y } = scaleOf(curve, lane);
    clipped(pen, lane.top, lane.height, () => {
        if (state.isEdited) trace(pen, view, state.before[index], y, theme.before, 1);
        trace(pen, view, state.after[index], y, colour, isNumber ? 1.1 : 1.7);
        if (state.stroke?.index === index) stroke(pen, view, state.stroke.points, y);
    });
}

/** A curve: through its frames where they are wide, else from the lowest to the highest of each pixel. */
function trace(pen, view, curve, y, colour, weight) {
    const { context, gutter, columns, sharp } = pen, values = curve.levels[0].low;
    const wide = Math.round(view.width * sharp), step = view.span / wide;
    if (step > DENSE) return dense(pen, view, curve, y, columns.colour(colour), weight, wide, step);
    context.strokeStyle = colour;
    context.lineWidth = weight;
    context.lineJoin = "bevel";
    context.beginPath();
    const last = Math.min(Math.ceil(view.first + view.span) + 1, values.length);
    for (let frame = Math.max(Math.floor(view.first) - 1, 0); frame < last; frame++) {
        context.lineTo(gutter + xOf(view, frame + 0.5), y(values[frame]));
    }
    context.stroke();
}

function dense({ gutter, columns, sharp }, view, curve, y, colour, weight, wide, step) {
    const left = Math.round(gutter * sharp), { low, high, count } = stretches(curve, view.first, step, wide);
    for (let i = 0; i < count; i++) columns.fill(left + i, y(high[i]) * sharp, y(low[i]) * sharp, weight * sharp, colour);
}

function stroke({ context, theme, gutter }, view, points, y) {
    context.strokeStyle = theme.selectionEdge;
    context.lineWidth = 2.5;
    context.beginPath();
    for (const frame of [...points.keys()].sort((a, b) => a - b)) context.lineTo(gutter + xOf(view, frame + 0.5), y(points.get(frame)));
    context.stroke();
}

function groupHeader(pen, state, lane) {
    const { context, theme, words } = pen, middle = lane.top + lane.height / 2;
    context.fillStyle = theme.dim;
    context.beginPath();
    const corners = state.isOpen ? [[8, -2], [16, -2], [12, 3]] : [[9, -4], [14, 0], [9, 4]];
    for (const [x, y] of corners) context.lineTo(x, middle + y);
    context.fill();
    pen.font(11);
    context.textAlign = "left";
    context.textBaseline = "middle";
    context.fillText(words("numbers"), 22, middle + 0.5);
}

function edits(pen, state, lane) {
    const { context, theme, words, font, gutter, fontScale } = pen, { view } = state, tall = BAR * fontScale;
    name(pen, words("edits"), { ...lane, height: tall + 4 }, theme.dim);
    clipped(pen, lane.top, lane.height, () => {
        for (const { index, start, stop, row } of bars(state.items ?? [], state.track.frames)) {
            if (row >= MOST_BAR_ROWS) continue;
            const x = gutter + xOf(view, start), wide = Math.max(gutter + xOf(view, stop) - x - 1, 3), y = lane.top + 2 + row * tall;
            const isChosen = index === state.chosen;
            context.fillStyle = theme.bar;
            context.beginPath();
            context.roundRect(x, y, wide, tall - 2, 3);
            context.fill();
            if (isChosen) {
                context.strokeStyle = theme.chosen;
                context.lineWidth = 2;
                context.stroke();
            }
            font(10.5);
            context.fillStyle = theme.barText;
            context.textAlign = "left";
            context.textBaseline = "middle";
            const item = state.items[index], unseen = state.unseen.includes(index) ? " *" : "";
            const label = words(`op ${item.op}`) + (item.op === "draw" ? `: ${words(item.curve ?? "opening")}` : "") + unseen;
            const from = Math.max(x, gutter) + 5, room = x + wide - from - 4;
            if (room > 8) context.fillText(shortened(context, label, room), from, y + (tall - 2) / 2 + 0.5);
        }
    });
}

function shortened(context, text, room) {
    let end = text.length;
    while (end > 1 && context.measureText(text.slice(0, end)).width > room) end--;
    return text.slice(0, end);
}

/** The bar of an edit under a pixel, and which part of it: {index, part: "start"|"stop"|"body"}. */
export function barAt(state, lane, x, y) {
    const row = Math.floor((y - lane.top - 2) / (BAR * state.fontScale)), near = 5;
    for (const bar of bars(state.items ?? [], state.track.frames).reverse()) {
        const left = xOf(state.view, bar.start), right = Math.max(xOf(state.view, bar.stop), left + 3);
        if (bar.row !== row || x < left - near || x > right + near) continue;
        const isNarrow = right - left < 4 * near;
        return { index: bar.index, part: isNarrow ? "body" : x < left + near ? "start" : x > right - near ? "stop" : "body" };
    }
    return null;
}

function scrollBar({ context, theme, width, gutter }, { view, track }, lane) {
    const room = width - gutter, frames = Math.max(track.frames, view.span);
    context.fillStyle = theme.lane;
    context.fillRect(gutter, lane.top + 2, room, lane.height - 4);
    context.fillStyle = theme.edge;
    context.beginPath();
    context.roundRect(gutter + (view.first / frames) * room, lane.top + 2, Math.max((view.span / frames) * room, 12), lane.height - 4, 3);
    context.fill();
}

function selection({ context, theme, gutter }, view, { start, stop }, top, bottom) {
    const [x0, x1] = [gutter + xOf(view, start), gutter + xOf(view, stop)];
    context.fillStyle = theme.selection;
    context.fillRect(x0, top, x1 - x0, bottom - top);
    for (const x of [x0, x1]) line(context, Math.round(x) + 0.5, top, Math.round(x) + 0.5, bottom, theme.selectionEdge);
}

/**
 * Lips that are so far open and so wide, in shares of the distance of the irises; how thick they are is the bundled clip's, at rest.
 */
export function drawMouth(context, opening, width, size, theme) {
    const [wide, tall] = size, scale = Math.min(wide / 1.1, tall / 0.85);
    const half = (width / 2) * scale, gap = Math.max(opening, 0) * scale, middle = tall * 0.45;
    const top = middle - gap * 0.3, bottom = middle + gap * 0.7; // the jaw drops more than the upper lip rises
    context.clearRect(0, 0, wide, tall);
    const outline = (over, under, reach) => {
        context.beginPath();
        context.moveTo(wide / 2 - reach, middle);
        context.bezierCurveTo(wide / 2 - reach * 0.45, over, wide / 2 + reach * 0.45, over, wide / 2 + reach, middle);
        context.bezierCurveTo(wide / 2 + reach * 0.45, under, wide / 2 - reach * 0.45, under, wide / 2 - reach, middle);
        context.fill();
    };
    const bent = (y) => middle + (y - middle) / 0.75; // a Bezier curve reaches three quarters of the way to its control points
    context.fillStyle = theme.isDark ? "#b4635f" : "#c9746f";
    outline(bent(top - 0.12 * scale), bent(bottom + 0.16 * scale), half);
    context.fillStyle = theme.isDark ? "#1b0d0f" : "#3a1518";
    outline(bent(top - 1), bent(bottom + 1), half * 0.88);
}
