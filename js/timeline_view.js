/**
 * Time on screen, and what lies where: pure functions, tested by node. Frame k takes the width from k to k + 1.
 *
 * @typedef {{first: number, span: number, width: number}} View The frame at the left edge, frames and pixels from there to the right.
 * @typedef {{levels: {low: Float32Array, high: Float32Array, step: number}[]}} Pyramid A curve's lowest and highest value over
 *     ever longer stretches, so that drawing costs the same at every zoom.
 */

const LEAST_SPAN = 4; // frames that fill the view at the closest
const TICK_PX = 74; // between two labels at least
const PYRAMID_STEP = 4;
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** The view that shows all frames. */
export function whole(frames, width) {
    return { first: 0, span: Math.max(frames, LEAST_SPAN), width };
}

/** The view within the track's ends. */
export function inside(view, frames) {
    const span = clamp(view.span, LEAST_SPAN, Math.max(frames, LEAST_SPAN));
    return { ...view, span, first: clamp(view.first, 0, Math.max(frames - span, 0)) };
}

/** Closer (factor above 1) or further, with the frame under pixel x where it is. */
export function zoomed(view, factor, x, frames) {
    const span = clamp(view.span / factor, LEAST_SPAN, Math.max(frames, LEAST_SPAN));
    const share = x / view.width;
    return inside({ ...view, first: view.first + share * (view.span - span), span }, frames);
}

/** Moved by pixels to the right. */
export function panned(view, pixels, frames) {
    return inside({ ...view, first: view.first + (pixels / view.width) * view.span }, frames);
}

/** The view moved so that a frame is in it; while playing it turns the page. */
export function following(view, frame, frames) {
    if (frame >= view.first && frame < view.first + view.span) return view;
    return inside({ ...view, first: frame - view.span * 0.1 }, frames);
}

/** Pixels from the left edge to the beginning of a frame. */
export function xOf(view, frame) {
    return ((frame - view.first) / view.span) * view.width;
}

/** The whole frame under a pixel, within the track. */
export function frameAt(view, x, frames) {
    return clamp(Math.floor(view.first + (x / view.width) * view.span), 0, Math.max(frames - 1, 0));
}

/** The nearest edge between frames, 0 to frames. */
export function edgeAt(view, x, frames) {
    return clamp(Math.round(view.first + (x / view.width) * view.span), 0, frames);
}

/**
 * The selection between where a drag began and where it is: whole frames, at least one.
 * @returns {{start: number, stop: number}} stop is the frame after the last.
 */
export function rangeBetween(view, x0, x1, frames) {
    const [a, b] = [frameAt(view, Math.min(x0, x1), frames), frameAt(view, Math.max(x0, x1), frames)];
    return { start: a, stop: b + 1 };
}

/** Labelled times: [{frame, label}], as many as fit; in frames where the view is close. */
export function ticks(view, fps) {
    const least = (TICK_PX / view.width) * view.span; // frames between labels
    const steps = [1, 2, 5, 10].filter((step) => step < fps / 2).concat([0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600].map((s) => s * fps));
    const step = steps.find((frames) => frames >= least) ?? steps.at(-1);
    const found = [];
    for (let i = Math.ceil(view.first / step); i * step <= view.first + view.span; i++) {
        found.push({ frame: i * step, label: step < fps / 2 ? String(Math.round(i * step)) : clock((i * step) / fps, step < fps) });
    }
    return found;
}

/** Seconds as 1:02 or 1:02.5. */
export function clock(seconds, isFine = false) {
    const tenths = Math.round(seconds * 10);
    const [minutes, rest] = [Math.floor(tenths / 600), tenths % 600];
    const whole = `${minutes}:${String(Math.floor(rest / 10)).padStart(2, "0")}`;
    return isFine ? `${whole}.${rest % 10}` : whole;
}

/** @param {Float32Array} values One per frame. @returns {Pyramid} */
export function pyramid(values) {
    const levels = [{ low: values, high: values, step: 1 }];
    while (levels.at(-1).low.length > 2 * PYRAMID_STEP) {
        const { low, high, step } = levels.at(-1);
        const count = Math.ceil(low.length / PYRAMID_STEP);
        const next = { low: new Float32Array(count).fill(Infinity), high: new Float32Array(count).fill(-Infinity), step: step * PYRAMID_STEP };
        for (let i = 0; i < low.length; i++) {
            const j = Math.floor(i / PYRAMID_STEP);
            if (low[i] < next.low[j]) next.low[j] = low[i];
            if (high[i] > next.high[j]) next.high[j] = high[i];
        }
        levels.push(next);
    }
    return { levels };
}

/**
 * Lowest and highest value of each of so many stretches in a row, each with at least one value in it.
 * @param {Pyramid} pyramid
 * @param {number} first Where the first stretch begins; it may lie before the curve, and the last one behind it.
 * @param {number} step Length of a stretch.
 * @returns {{low: Float32Array, high: Float32Array, count: number}} count: stretches that begin within the curve.
 */
export function stretches(pyramid, first, step, count) {
    let level = pyramid.levels[0];
    for (const candidate of pyramid.levels) if (candidate.step <= Math.max(step / 2, 1)) level = candidate;
    const { low: lows, high: highs } = level, length = lows.length;
    const low = new Float32Array(count), high = new Float32Array(count);
    const start = first / level.step, stride = step / level.step;
    let i = 0;
    for (; i < count && start + i * stride < length; i++) {
        const from = Math.max(Math.floor(start + i * stride), 0), to = Math.min(Math.max(Math.ceil(start + (i + 1) * stride), from + 1), length);
        let least = lows[from], most = highs[from];
        for (let k = from + 1; k < to; k++) {
            if (lows[k] < least) least = lows[k];
            if (highs[k] > most) most = highs[k];
        }
        low[i] = least;
        high[i] = most;
    }
    return { low, high, count: i };
}

/** Points of a stroke in ascending frames, without those that lie within a tolerance of the line between their neighbours. */
export function simplified(points, tolerance) {
    if (points.length < 3) return points;
    const [[x0, y0], [x1, y1]] = [points[0], points.at(-1)];
    let furthest = 0, most = tolerance;
    for (let i = 1; i < points.length - 1; i++) {
        const [x, y] = points[i];
        const distance = Math.abs(y - (y0 + ((x - x0) / (x1 - x0)) * (y1 - y0)));
        if (distance > most) [furthest, most] = [i, distance];
    }
    if (!furthest) return [points[0], points.at(-1)];
    return [...simplified(points.slice(0, furthest + 1), tolerance).slice(0, -1), ...simplified(points.slice(furthest), tolerance)];
}

/** Adds a piece of a stroke: each frame between two pointer positions gets its height; later ones overwrite. Changes stroke. */
export function strokeTo(stroke, from, to) {
    const [a, b] = [from.frame, to.frame];
    const count = Math.abs(b - a);
    for (let i = 0; i <= count; i++) {
        const share = count ? i / count : 1;
        stroke.set(a + Math.sign(b - a) * i, from.value + share * (to.value - from.value));
    }
    return stroke;
}

/** Operations as bars in as few rows as do not overlap: [{index, start, stop, row}]. */
export function bars(items, frames) {
    const ends = [];
    return items.map((item, index) => {
        const start = item.start ?? 0, stop = Math.min(item.stop ?? frames, frames);
        let row = ends.findIndex((end) => end <= start);
        if (row < 0) row = ends.length;
        ends[row] = stop;
        return { index, start, stop, row };
    });
}

/**
 * Where everything lies, from top to bottom.
 * @param {{key: string, height: number, grows: boolean}[]} wanted
 * @returns {{key: string, top: number, height: number}[]} Those that grow share what is left of the height.
 */
export function lanes(wanted, height) {
    const fixed = wanted.reduce((sum, lane) => sum + lane.height, 0);
    const growing = wanted.filter((lane) => lane.grows).reduce((sum, lane) => sum + lane.height, 0);
    const extra = Math.max(height - fixed, 0);
    let end = 0;
    return wanted.map(({ key, height: own, grows }) => {
        const top = Math.round(end); // whole pixels: clipping between them is many times slower
        end += own + (grows ? (extra * own) / growing : 0);
        return { key, top, height: Math.round(end) - top };
    });
}

/** The lane under a pixel, or undefined. */
export function laneAt(placed, y) {
    return placed.find((lane) => y >= lane.top && y < lane.top + lane.height);
}
