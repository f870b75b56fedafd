// Clips of one answer begin together, so that A and B are in step.
const inStep = () => {
  const videos = [...element.querySelectorAll("video")];
  let waiting = videos.length;
  const begin = () => videos.forEach((video) => { video.currentTime = 0; video.muted = true; video.play().catch(() => {}); });
  const ready = () => { waiting -= 1; if (waiting === 0) begin(); };
  videos.forEach((video) => {
    if (video.readyState >= 3) ready();
    else video.addEventListener("canplay", ready, { once: true });
  });
};
watch("value", inStep);
inStep();
