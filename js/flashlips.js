import { app } from "../../scripts/app.js";

// The newer renderer takes whatever a node with a VIDEO input shows for a video, unless the node says what it is.
const SHOWS_IMAGES = "FlashLipsPreviewTrack";
// Lip Sync got its choice of what happens to the seed after a run later than its other widgets; saved values are a list.
const SEEDED = "FlashLipsLipSync";
const SEED_AT = 3; // face, length, lip_motion, seed

/** Older workflows keep their values: the new one gets its own place. @param {{nodes?: any[], definitions?: any}} graph */
function makeRoomForSeedControl(graph) {
    const inner = graph.definitions?.subgraphs ?? [];
    for (const node of [graph, ...inner].flatMap((part) => part.nodes ?? [])) {
        const values = node.type === SEEDED ? node.widgets_values : null;
        if (Array.isArray(values) && typeof values[SEED_AT + 1] === "boolean") values.splice(SEED_AT + 1, 0, "fixed");
    }
}

const TEXT = "$$node-text-preview"; // ComfyUI's widget for what a node says; it has room for two lines
const LINE = 16; // px

/** Room for all that one of our nodes says. @param {{detail: {nodeId: string, text: string}}} event */
function makeRoomForText({ detail }) {
    const node = app.graph?.getNodeById(detail.nodeId);
    if (!node?.comfyClass?.startsWith("FlashLips")) return;
    const widget = node.widgets?.find(({ name }) => name === TEXT);
    if (!widget) return;
    const letters = Math.max(20, (node.size[0] - 60) / 6.2); // in a line
    const lines = detail.text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / letters)), 0);
    const height = 26 + LINE * Math.max(2, lines);
    if (widget.options.getMinHeight?.() === height) return;
    widget.options.getMinHeight = () => height;
    const least = node.computeSize()[1];
    if (node.size[1] < least) node.setSize([node.size[0], least]);
}

app.registerExtension({
    name: "FlashLips",
    beforeConfigureGraph: makeRoomForSeedControl,
    setup() {
        app.api.addEventListener("progress_text", (event) => setTimeout(makeRoomForText, 0, event)); // after ComfyUI itself
    },
    nodeCreated(node) {
        if (node.comfyClass === SHOWS_IMAGES) node.previewMediaType = "image";
    },
});
