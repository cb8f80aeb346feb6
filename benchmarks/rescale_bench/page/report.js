"use strict";
// Without this script the page shows all crops side by side.
for (const picture of document.querySelectorAll(".picture")) {
  const crops = [...picture.querySelectorAll(".panels img")];
  const viewer = picture.querySelector(".viewer");
  const [under, over] = viewer.querySelectorAll(".stage img");
  const line = viewer.querySelector(".line");
  const slide = viewer.querySelector(".slide");
  const caption = viewer.querySelector(".right");
  under.src = crops[0].src;
  const place = () => {
    over.style.clipPath = `inset(0 0 0 ${slide.value}%)`;
    line.style.left = `${slide.value}%`;
    slide.setAttribute("aria-valuetext", `${slide.value} % source, the rest ${caption.textContent}`);
  };
  const choose = (key) => {
    const crop = crops.find((c) => c.dataset.key === key);
    over.src = crop.src;
    over.alt = crop.alt;
    caption.textContent = crop.dataset.title;
    place();
  };
  for (const radio of viewer.querySelectorAll("input[type=radio]")) {
    radio.addEventListener("change", () => choose(radio.value));
    if (radio.checked) choose(radio.value);
  }
  slide.addEventListener("input", place);
  const drag = (event) => {
    if (!event.buttons) return;
    const box = event.currentTarget.getBoundingClientRect();
    slide.value = Math.round((100 * (event.clientX - box.left)) / box.width);
    place();
  };
  const stage = viewer.querySelector(".stage");
  stage.addEventListener("pointerdown", drag);
  stage.addEventListener("pointermove", drag);
  picture.querySelector(".bare").hidden = true;
  viewer.hidden = false;
  picture.querySelector("details").open = false;
}
