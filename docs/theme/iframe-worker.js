/* Browsers start no worker from a page that was opened as a file, and the search is a worker.
 * There, and only there, its script runs in a hidden frame, which has a window of its own. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      this.inside = frame.contentWindow;
      this.inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.loaded = new Promise((resolve, reject) => {
        const script = frame.contentDocument.createElement("script");
        script.onload = resolve;
        script.onerror = reject;
        script.src = url;
        frame.contentDocument.body.appendChild(script);
      });
    }

    postMessage(data) {
      const message = () => this.inside.dispatchEvent(new MessageEvent("message", { data }));
      this.loaded.then(message);
    }

    terminate() {
      this.inside.frameElement.remove();
    }
  };
}
