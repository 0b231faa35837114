/**
 * The list of operations of Edit Lip Poses, as flashlips_core/poses/operations.py applies it: read from its text and applied to a
 * track, so that an edit is seen before the next run. A test holds both to the same numbers. Nothing here knows the browser.
 *
 * @typedef {{op: string, start?: number, stop?: number|null, fade?: number, [field: string]: any}} Operation
 * @typedef {{name: string, weights: number[], bias: number, direction: number[]}} Curve What the mouth does on screen, read
 *     from a pose as weights * pose + bias; a step along direction raises it by one.
 * @typedef {{frames: number, fps: number, values: Float32Array, rest: number[], curves: Curve[], gate: Float32Array|null}} Track
 *     values: frame by frame, DIM numbers each; gate: how much each frame belongs to speech.
 */

export const DIM = 12;
const EXPRESSION = 8; // the numbers before it are the expression's, the others the mouth's

const FRAME = "frame", NUMBER = "number", FLAG = "flag", POINTS = "points", NAME = "name";
const RANGE = { start: [FRAME, 0], stop: [FRAME, null], fade: [NUMBER, 0] };
/** Fields of each operation with their kind and default; the range's belong to all. */
export const FIELDS = {
    gain: { expression: [NUMBER, 1], mouth: [NUMBER, 1] },
    smooth: { deviation: [NUMBER, 1] },
    shift: { frames: [NUMBER, 0] },
    hold: { frame: [FRAME, null] },
    mix: { amount: [NUMBER, 1], mask: [FLAG, false] },
    gate: { threshold_db: [NUMBER, -32], attack: [NUMBER, null], hold: [NUMBER, null], release: [NUMBER, null] },
    keys: { dimension: [FRAME, 0], points: [POINTS, []] },
    rest: { amount: [NUMBER, 1] },
    draw: { curve: [NAME, "opening"], points: [POINTS, []] },
    copy: { source: [FRAME, 0] },
};
const CHECKS = {
    [FRAME]: (value) => Number.isInteger(value) && value >= 0,
    [NUMBER]: (value) => typeof value === "number" && Number.isFinite(value),
    [FLAG]: (value) => typeof value === "boolean",
    [NAME]: (value) => typeof value === "string",
    [POINTS]: (value) => Array.isArray(value) && value.every((point, i) =>
        Array.isArray(point) && point.length === 2 && Number.isInteger(point[0]) && Number.isFinite(point[1]) &&
        point[0] > (i ? value[i - 1][0] : -1)),
};

/**
 * The operations of a widget's text, or why it is left alone.
 * @param {unknown} text
 * @returns {{items: Operation[], problem: null} | {items: null, problem: {key: string, number?: number, what?: string}}}
 */
export function parse(text) {
    if (typeof text !== "string") return { items: null, problem: { key: "notText" } };
    if (!text.trim()) return { items: [], problem: null };
    let items;
    try {
        items = JSON.parse(text);
    } catch (error) {
        return { items: null, problem: { key: "notJson", what: error.message } };
    }
    if (!Array.isArray(items)) return { items: null, problem: { key: "notList" } };
    for (const [index, item] of items.entries()) {
        const wrong = problemOf(item);
        if (wrong) return { items: null, problem: { ...wrong, number: index + 1 } };
    }
    return { items, problem: null };
}

function problemOf(item) {
    if (item === null || typeof item !== "object" || !Object.hasOwn(FIELDS, item.op)) {
        return { key: "unknownOperation", what: String(item?.op) };
    }
    const fields = fieldsOf(item.op);
    for (const [name, value] of Object.entries(item)) {
        if (name === "op") continue;
        if (!Object.hasOwn(fields, name)) return { key: "unknownField", what: name };
        const [kind, standard] = fields[name];
        if (!CHECKS[kind](value) && !(value === null && standard === null)) return { key: "wrongValue", what: name };
    }
    return (item.stop ?? Infinity) <= (item.start ?? 0) ? { key: "wrongValue", what: "stop" } : null;
}

/** Every field of an operation. */
export function fieldsOf(op) {
    return { ...FIELDS[op], ...RANGE };
}

/** The value of a field, or its default. */
export function valueOf(item, name) {
    return item[name] ?? fieldsOf(item.op)[name][1];
}

/** One operation a line: short, and readable where somebody looks at the text. */
export function format(items) {
    return items.length ? `[${items.map((item) => JSON.stringify(item)).join(",\n ")}]` : "[]";
}

/**
 * The track's values after all operations.
 * @param {Track} track
 * @param {Operation[]} items
 * @returns {{values: Float32Array, unseen: number[]}} unseen: indices of operations that only a run can apply.
 */
export function applied(track, items) {
    let values = track.values;
    const unseen = [];
    items.forEach((item, index) => {
        const changed = changedBy(track, values, item);
        if (changed === null) unseen.push(index);
        else values = blended(track.frames, values, changed, item);
    });
    return { values, unseen };
}

function changedBy(track, values, item) {
    const get = (name) => valueOf(item, name);
    switch (item.op) {
        case "gain": return gained(values, track.rest, get("expression"), get("mouth"));
        case "smooth": return smoothed(values, get("deviation"));
        case "shift": return shifted(values, get("frames"));
        case "hold": return held(values, item.frame ?? item.start ?? 0, track.frames);
        case "keys": return keyed(values, get("dimension"), get("points"));
        case "rest": return towardsRest(values, track.rest, () => get("amount"));
        case "draw": return drawn(values, track.curves.find((curve) => curve.name === get("curve")), get("points"));
        case "copy": return copied(values, get("source") - get("start"), get("source") < track.frames);
        case "gate": {
            const isStandard = Object.keys(FIELDS.gate).every((name) => item[name] == null || item[name] === FIELDS.gate[name][1]);
            return isStandard && track.gate ? towardsRest(values, track.rest, (frame) => 1 - track.gate[frame]) : null;
        }
        default: return null;
    }
}

/** How much an operation acts on a frame, 0 to 1. */
export function weightAt(item, frame, frames) {
    const start = item.start ?? 0, stop = item.stop ?? frames;
    const outside = Math.max(start - frame, frame - (stop - 1), 0);
    return Math.min(Math.max(1 - outside / ((item.fade ?? 0) + 1), 0), 1);
}

function blended(frames, before, after, item) {
    const result = before.slice();
    for (let frame = 0; frame < frames; frame++) {
        const weight = weightAt(item, frame, frames);
        if (!weight) continue;
        for (let i = frame * DIM; i < (frame + 1) * DIM; i++) result[i] = before[i] + weight * (after[i] - before[i]);
    }
    return result;
}

function gained(values, rest, expression, mouth) {
    return values.map((value, i) => rest[i % DIM] + (i % DIM < EXPRESSION ? expression : mouth) * (value - rest[i % DIM]));
}

function towardsRest(values, rest, amountAt) {
    return values.map((value, i) => value + amountAt(Math.floor(i / DIM)) * (rest[i % DIM] - value));
}

function smoothed(values, deviation) {
    const frames = values.length / DIM;
    if (deviation < 0.05 || frames < 2) return values;
    const reach = Math.max(1, Math.round(3 * deviation));
    const kernel = Array.from({ length: 2 * reach + 1 }, (_, i) => Math.exp(-0.5 * ((i - reach) / deviation) ** 2));
    const total = kernel.reduce((sum, share) => sum + share);
    const result = new Float32Array(values.length);
    for (let frame = 0; frame < frames; frame++) {
        for (let k = 0; k <= 2 * reach; k++) {
            const row = Math.min(Math.max(frame + k - reach, 0), frames - 1) * DIM, share = kernel[k] / total;
            for (let d = 0; d < DIM; d++) result[frame * DIM + d] += share * values[row + d];
        }
    }
    return result;
}

function shifted(values, by) {
    const last = values.length / DIM - 1, result = new Float32Array(values.length);
    const row = (frame) => Math.min(Math.max(frame, 0), last) * DIM;
    for (let frame = 0; frame <= last; frame++) {
        const time = Math.min(Math.max(frame - by, 0), last), base = Math.floor(time), t = time - base;
        const [a, b, c, e] = [row(base - 1), row(base), row(base + 1), row(base + 2)];
        for (let d = 0; d < DIM; d++) { // Catmull-Rom, as in poses/motion.py
            const [p0, p1, p2, p3] = [values[a + d], values[b + d], values[c + d], values[e + d]];
            const cubic = 2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0);
            result[frame * DIM + d] = p1 + 0.5 * t * (p2 - p0 + t * cubic);
        }
    }
    return result;
}

function held(values, frame, frames) {
    return frame < frames ? values.map((_, i) => values[frame * DIM + (i % DIM)]) : null;
}

function copied(values, offset, isInside) {
    const last = values.length / DIM - 1;
    return isInside ? values.map((_, i) => values[Math.min(Math.max(Math.floor(i / DIM) + offset, 0), last) * DIM + (i % DIM)]) : null;
}

function keyed(values, dimension, points) {
    if (!points.length) return values;
    const height = heights(points);
    return values.map((value, i) => (i % DIM === dimension ? value + height(Math.floor(i / DIM)) : value));
}

function drawn(values, curve, points) {
    if (!curve) return null;
    if (!points.length) return values;
    const height = heights(points), result = values.slice();
    for (let frame = 0; frame * DIM < values.length; frame++) {
        const by = height(frame) - readAt(values, frame, curve);
        for (let d = 0; d < DIM; d++) result[frame * DIM + d] += by * curve.direction[d];
    }
    return result;
}

/** What a curve reads at a frame. */
export function readAt(values, frame, curve) {
    let sum = curve.bias;
    for (let d = 0; d < DIM; d++) sum += curve.weights[d] * values[frame * DIM + d];
    return sum;
}

/** The height of a drawn curve at any frame: linear between its points, held outside. Ask in ascending order. */
function heights(points) {
    let i = 0;
    return (frame) => {
        while (i < points.length && points[i][0] < frame) i++;
        if (i === 0) return points[0][1];
        if (i === points.length) return points[i - 1][1];
        const [[x0, y0], [x1, y1]] = [points[i - 1], points[i]];
        return y0 + ((frame - x0) / (x1 - x0)) * (y1 - y0);
    };
}
