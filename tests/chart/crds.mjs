// Checks custom resources, a JSON list on standard input, with the validators of @kubernetes-models.
import { readFileSync } from "node:fs";
import * as operator from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";
import * as keda from "@kubernetes-models/keda/keda.sh/v1alpha1";
import * as gateway from "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1";

const kinds = { ...operator, ...keda, ...gateway };
for (const one of JSON.parse(readFileSync(0, "utf8"))) {
  try {
    new kinds[one.kind](one).validate();
  } catch (error) {
    console.log(one.kind, one.metadata.name, error.message);
    process.exitCode = 1;
  }
}
