(() => {
  const dark = DARK, light = Object.fromEntries(Object.entries(dark).map((pair) => pair.reverse()));
  const turn = (part, by) => {
    for (const [key, value] of Object.entries(part)) {
      if (typeof value === "string") part[key] = by[value] || value;
      else if (Array.isArray(value) || value?.constructor === Object) turn(value, by);
    }
    return part;
  };
  const follow = () => document.querySelectorAll(".js-plotly-plot").forEach((figure) => {
    const isLight = document.body.dataset.jpThemeLight ?? "true", by = isLight === "true" ? light : dark;
    if (!figure._fullLayout || (figure.dataset.isLight ?? "true") === isLight) return;
    figure.dataset.isLight = isLight;
    const [data, layout] = [figure.data, figure.layout].map((part) => turn(structuredClone(part), by));
    Plotly.newPlot(figure, data, { ...layout, height: figure._fullLayout.height }, figure._context);
  });
  let waits;  // until what is being drawn is drawn
  const soon = () => waits ??= setTimeout(() => { waits = undefined, follow(); }, 200);
  window.wbFollow?.disconnect();
  window.wbFollow = new MutationObserver(soon);
  window.wbFollow.observe(document.body, { attributeFilter: ["data-jp-theme-light"], childList: true, subtree: true });
})()
