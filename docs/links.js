// Pages link to files outside docs/ by relative path, which works on GitHub; on the site these links lead to the repository.
document.addEventListener("DOMContentLoaded", () => {
  const repository = document.querySelector("a.md-source")?.href.replace(/\/$/, "");
  for (const link of document.querySelectorAll(".md-content a[href^='../']")) {
    const path = link.getAttribute("href").replace(/^(\.\.\/)+/, "");
    if (repository && /^(benchmarks|notebooks|tests|tinynet)(\/|$)/.test(path)) {
      link.href = `${repository}/blob/main/${path}`;
    }
  }
});
