// The camera: a button, and a preview while it is open.

const NO_CAMERA = "No camera: browsers allow it only on localhost or over https.";

/** Takes pictures with the camera and passes them to `take` as files. */
class Camera {
  constructor(take) {
    this.take = take;
    this.missing = navigator.mediaDevices?.getUserMedia ? "" : NO_CAMERA;
    this.button = makeButton("Camera", () => this.toggle());
    this.reason = make("p", { class: "mlxv-reason", hidden: true });
    this.video = make("video", { autoplay: true, playsinline: true, "aria-label": "Camera" });
    this.video.muted = true;
    this.shoot = makeButton("Take picture", () => this.snap(), { kind: "mlxv-primary" });
    const close = makeButton("Close", () => this.close());
    const buttons = make("div", { class: "mlxv-buttons" }, this.shoot, close);
    this.node = make("div", { class: "mlxv-camera", hidden: true }, this.video, buttons);
    bindEscape(this.node, () => this.close());
    this.allow("");
  }

  /** Enable the button, or disable it with a reason. */
  allow(why) {
    allow(this.button, why || this.missing);
    if (this.missing) setText(this.reason, why ? "" : this.missing);
    if (why) this.release();
  }

  /** Open the camera, or close it. */
  async toggle() {
    if (this.stream) return this.close();
    this.wanted = true;
    try {
      const video = { width: { ideal: 1280 }, facingMode: { ideal: "environment" } };
      this.stream = await navigator.mediaDevices.getUserMedia({ video });
    } catch (error) {
      const refused = error.name === "NotAllowedError";
      const why = refused ? "The browser did not allow the camera." : `No camera: ${error.message}`;
      return setText(this.reason, why);
    }
    if (!this.wanted) return this.release(); // closed while the browser asked for permission
    setText(this.reason, "");
    this.video.srcObject = this.stream;
    this.node.hidden = false;
    this.shoot.focus();
  }

  /** Take a picture. */
  snap() {
    const { videoWidth: width, videoHeight: height } = this.video;
    if (!width) return;
    const canvas = make("canvas", { width, height });
    canvas.getContext("2d").drawImage(this.video, 0, 0);
    canvas.toBlob((blob) => this.take(named(blob, "camera")), "image/jpeg", 0.92);
  }

  /** Close the preview. */
  close() {
    this.release();
    this.button.focus();
  }

  /** Release the camera. */
  release() {
    this.wanted = false;
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.stream = null;
    this.video.srcObject = null;
    this.node.hidden = true;
  }
}
