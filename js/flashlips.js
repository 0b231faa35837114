import { app } from "../../scripts/app.js";

// The newer renderer takes whatever a node with a VIDEO input shows for a video, unless the node says what it is.
const SHOWS_IMAGES = "FlashLipsPreviewTrack";

app.registerExtension({
    name: "FlashLips",
    nodeCreated(node) {
        if (node.comfyClass === SHOWS_IMAGES) node.previewMediaType = "image";
    },
});
