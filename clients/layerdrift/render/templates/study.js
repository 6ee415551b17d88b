// One picked member, which every figure and table follows. After figures.js.
let picked = "";

function pick(name) {
  picked = name;
  $("member").value = name;
  document.querySelectorAll("tr[data-member]").forEach((row) => row.classList.toggle("picked", row.dataset.member === name));
  Object.values(views).forEach(follow);
}

function follow(view) {
  try {
    view.signal("member", picked).runAsync();
  } catch {
    // a figure without members
  }
}

drawn = (_id, view) => {
  follow(view);
  view.addEventListener("click", (_event, item) => pick(item?.datum?.member ?? ""));
};

$("member").addEventListener("change", (event) => pick(event.target.value));
document.querySelectorAll("tr[data-member]").forEach((row) => row.addEventListener("click", () => pick(row.dataset.member === picked ? "" : row.dataset.member)));
showFigures("drift");
