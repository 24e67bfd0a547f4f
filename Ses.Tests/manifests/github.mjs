// Holds the workflows and issue forms in .github/ against what GitHub takes, and the workflows against the Makefile;
// a sentence for each fault, then exit code 1.
// usage: node github.mjs ROOT, the folder with .github/ and the Makefile
import { existsSync, readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import yaml from "js-yaml";

const root = process.argv[2];
const faults = [];
const expect = (holds, fault) => { if (!holds) faults.push(fault); };
function load(folder) {
  return readdirSync(join(root, ".github", folder)).filter((file) => file.endsWith(".yml")).map((file) => {
    try {
      return [file, yaml.load(readFileSync(join(root, ".github", folder, file), "utf8")) ?? {}];
    } catch (e) {
      faults.push(`${file}: ${e.message.split("\n")[0]}`);
      return [file, {}];
    }
  });
}

const targets = readFileSync(join(root, "Makefile"), "utf8").match(/^\.PHONY: (.*)$/m)[1].split(" ");
for (const [file, { name, on, jobs }] of load("workflows")) {
  expect(name && on && jobs, `${file} has a name, events and jobs`);
  for (const [id, job] of Object.entries(jobs ?? {})) {
    expect(job["runs-on"] && job.steps?.length, `${file}: the job ${id} has a runner and steps`);
    expect(job["timeout-minutes"], `${file}: the job ${id} has a timeout`);
    for (const step of job.steps ?? []) {
      expect(!step.uses !== !step.run, `${file}: each step of ${id} either uses or runs something`);
      expect(!step.uses || /@v\d+\.\d+\.\d+$/.test(step.uses), `${file}: ${step.uses} is pinned to a version`);
      for (const [, target] of (step.run ?? "").matchAll(/^make (\S+)/gm))
        expect(targets.includes(target), `${file}: make ${target} is a target`);
      for (const [, script] of (step.run ?? "").matchAll(/^bash (\S+)/gm))
        expect(existsSync(join(root, script)), `${file}: ${script} exists`);
    }
  }
}

const kinds = ["markdown", "textarea", "input", "dropdown", "checkboxes"];
for (const [file, { name, description, body }] of load("ISSUE_TEMPLATE").filter(([file]) => file !== "config.yml")) {
  expect(name && description && body?.length, `${file} has a name, a description and a body`);
  const ids = (body ?? []).map((field) => field.id).filter((id) => id);
  expect(new Set(ids).size === ids.length, `${file}: each id is there once`);
  for (const { type, attributes } of body ?? []) {
    expect(kinds.includes(type), `${file}: ${type} is a kind of field`);
    expect(type === "markdown" ? attributes?.value : attributes?.label, `${file}: each field has a label`);
    expect(type !== "dropdown" || attributes?.options?.length, `${file}: each dropdown has options`);
  }
}

faults.forEach((fault) => console.log(fault));
console.log(`${faults.length} faults`);
process.exit(faults.length ? 1 : 0);
