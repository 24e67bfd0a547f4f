// Holds SBOMs against CycloneDX's schema; a line for each fault, then exit code 1.
// usage: node validate.mjs FILE...
import { readFileSync } from "node:fs";
import { Spec, Validation } from "@cyclonedx/cyclonedx-library";

const validator = new Validation.JsonStrictValidator(Spec.Version.v1dot6);
let faults = 0;
for (const file of process.argv.slice(2))
  for (const fault of await validator.validate(readFileSync(file, "utf8")) ?? []) {
    console.log(`${file}${fault.instancePath} ${fault.message}`);
    faults++;
  }
console.log(`${faults} faults`);
process.exit(faults ? 1 : 0);
