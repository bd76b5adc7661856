// Painting over a picture: strokes on a canvas that lies over it, kept as paths, so that each can be taken back.
// By events of the document, as in page.js. What is painted leaves the browser only when the server is asked to paint.
(() => {
  const strokes = new WeakMap(); // canvas -> its strokes: {erases, width, points}
  const tool = { erases: false, size: 14 };
  const STEP = 2; // of the arrow keys, in percent of the longer side
  let current = null;

  const canvasHere = () => document.querySelector(".painter canvas");
  const strokesOf = (canvas) => strokes.get(canvas) || strokes.set(canvas, []).get(canvas);

  function place(canvas, event) {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * canvas.width, ((event.clientY - box.top) / box.height) * canvas.height];
  }

  function trace(context, stroke, colour) {
    context.globalCompositeOperation = stroke.erases ? "destination-out" : "source-over";
    context.strokeStyle = context.fillStyle = colour;
    context.lineWidth = stroke.width;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    if (stroke.points.length === 1) {
      context.arc(...stroke.points[0], stroke.width / 2, 0, 2 * Math.PI);
      context.fill();
      return;
    }
    stroke.points.forEach(([x, y], index) => (index ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.stroke();
  }

  function redraw(canvas) {
    const context = canvas.getContext("2d");
    context.globalCompositeOperation = "source-over";
    context.clearRect(0, 0, canvas.width, canvas.height);
    strokesOf(canvas).forEach((stroke) => trace(context, stroke, "#2a9562"));
    if (canvas.cursorAt && canvas === document.activeElement) {
      context.globalCompositeOperation = "source-over";
      context.strokeStyle = "#ffffff";
      context.lineWidth = Math.max(1, canvas.width / 200);
      context.beginPath();
      context.arc(...canvas.cursorAt, width(canvas) / 2, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  const width = (canvas) => (tool.size / 100) * Math.max(canvas.width, canvas.height);

  function begin(canvas, point) {
    current = { erases: tool.erases, width: width(canvas), points: [point] };
    strokesOf(canvas).push(current);
    redraw(canvas);
  }

  // The mask as a PNG: white where there is paint, black elsewhere; empty where there is none.
  window.unimmMask = () => {
    const canvas = canvasHere();
    if (!canvas || !strokesOf(canvas).some((stroke) => !stroke.erases)) return "";
    const paint = document.createElement("canvas");
    [paint.width, paint.height] = [canvas.width, canvas.height];
    const context = paint.getContext("2d");
    strokesOf(canvas).forEach((stroke) => trace(context, stroke, "#ffffff"));
    context.globalCompositeOperation = "destination-over";
    context.fillStyle = "#000000";
    context.fillRect(0, 0, paint.width, paint.height);
    return paint.toDataURL("image/png");
  };

  document.addEventListener("pointerdown", (event) => {
    const canvas = event.target.closest && event.target.closest(".painter canvas");
    if (!canvas || event.button) return;
    event.preventDefault();
    canvas.cursorAt = null;
    canvas.setPointerCapture(event.pointerId);
    begin(canvas, place(canvas, event));
  });
  document.addEventListener("pointermove", (event) => {
    if (!current || !event.target.closest || !event.target.closest(".painter canvas")) return;
    const more = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
    (more.length ? more : [event]).forEach((one) => current.points.push(place(event.target, one)));
    redraw(event.target);
  });
  ["pointerup", "pointercancel"].forEach((name) => document.addEventListener(name, () => (current = null)));

  // With the keyboard: arrows move the brush, the space bar paints a dot.
  document.addEventListener("keydown", (event) => {
    const canvas = event.target.closest && event.target.closest(".painter canvas");
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (!canvas || !(event.key in moves || event.key === " ")) return;
    event.preventDefault();
    const [x, y] = canvas.cursorAt || [canvas.width / 2, canvas.height / 2];
    const [across, down] = moves[event.key] || [0, 0];
    const step = (STEP / 100) * Math.max(canvas.width, canvas.height);
    canvas.cursorAt = [
      Math.min(Math.max(x + across * step, 0), canvas.width),
      Math.min(Math.max(y + down * step, 0), canvas.height),
    ];
    if (event.key === " ") begin(canvas, canvas.cursorAt);
    current = null;
    redraw(canvas);
  });
  ["focusin", "focusout"].forEach((name) =>
    document.addEventListener(name, (event) => event.target.matches(".painter canvas") && redraw(event.target)),
  );

  document.addEventListener("click", (event) => {
    const button = event.target.closest && event.target.closest("[data-tool]");
    const canvas = canvasHere();
    if (!button || !canvas) return;
    const name = button.dataset.tool;
    if (name === "undo") strokesOf(canvas).pop();
    else if (name === "wipe") strokes.set(canvas, []);
    else {
      tool.erases = name === "eraser";
      document.querySelectorAll("[data-tool][aria-pressed]").forEach((one) =>
        one.setAttribute("aria-pressed", String(one === button)),
      );
    }
    redraw(canvas);
  });
  document.addEventListener("input", (event) => {
    if (event.target.matches && event.target.matches("[data-brush]")) tool.size = Number(event.target.value);
  });
})();
