/**
 * Dense curves as columns of pixels. A path through thousands of points takes a software canvas tenths of a second; writing the
 * same columns into a picture takes a few milliseconds.
 */

export class Columns {
    constructor() {
        this.canvas = document.createElement("canvas");
        this.size = "";
    }

    /** Begins an empty picture of this many device pixels. */
    begin(width, height) {
        if (this.size !== `${width} ${height}`) {
            this.size = `${width} ${height}`;
            Object.assign(this.canvas, { width, height });
            this.context = this.canvas.getContext("2d");
            this.image = this.context.createImageData(width, height);
            this.pixels = new Uint32Array(this.image.data.buffer);
            this.colours = new Map();
        }
        this.width = width;
        this.height = height;
        this.pixels.fill(0);
        this.isUsed = false;
    }

    /** One column between two heights, at least a weight tall; in device pixels. */
    fill(x, top, bottom, weight, colour) {
        if (x < 0 || x >= this.width) return;
        const spare = Math.max(weight - (bottom - top), 0) / 2;
        const from = Math.max(Math.round(top - spare), 0), to = Math.min(Math.max(Math.round(bottom + spare), from + 1), this.height);
        const { pixels, width } = this;
        for (let y = from, at = from * width + x; y < to; y++, at += width) pixels[at] = colour;
        this.isUsed = true;
    }

    /** A CSS colour as a pixel. */
    colour(css) {
        if (!this.colours.has(css)) {
            const probe = document.createElement("canvas").getContext("2d");
            probe.fillStyle = css;
            probe.fillRect(0, 0, 1, 1);
            this.colours.set(css, new Uint32Array(probe.getImageData(0, 0, 1, 1).data.buffer)[0]);
        }
        return this.colours.get(css);
    }

    /** Puts the picture over what a context shows. */
    end(context) {
        if (!this.isUsed) return;
        this.context.putImageData(this.image, 0, 0);
        context.save();
        context.resetTransform();
        context.drawImage(this.canvas, 0, 0);
        context.restore();
    }
}
