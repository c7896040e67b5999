// Sends one event in each mode with the CloudEvents SDK, and two with the client
// of OpenMeter, all of them twice: node send.js URL KEY ORG.
import { CloudEvent, HTTP, emitterFor, httpTransport, Mode } from 'cloudevents'
import { OpenMeter } from '@openmeter/sdk'

const [url, key, org] = process.argv.slice(2)
const sink = `${url}/orgs/${org}/consumption/events`
const event = (id) =>
  new CloudEvent({
    id,
    source: '/npm/cloudevents',
    type: 'llm.request',
    subject: org,
    time: new Date().toISOString(),
    tenant: 'an extension attribute',
    data: { model: 'small', usage: { total_tokens: 10 } },
  })

async function post(message) {
  const answer = await fetch(sink, {
    method: 'POST',
    headers: { ...message.headers, authorization: `Bearer ${key}` },
    body: message.body,
  })
  if (answer.status !== 200) {
    throw new Error(`${answer.status} ${await answer.text()}`)
  }
}

const openmeter = new OpenMeter({ baseUrl: url, apiKey: key })
for (let round = 0; round < 2; round++) {
  await post(HTTP.binary(event('binary')))
  await post(HTTP.structured(event('structured')))
  await post({
    headers: { 'content-type': 'application/cloudevents-batch+json' },
    body: JSON.stringify([event('batch-1'), event('batch-2')]),
  })
  // The emitter of the SDK, which knows of no answer.
  const emit = emitterFor(httpTransport(sink), { mode: Mode.BINARY })
  await emit(event('emitted'), { headers: { authorization: `Bearer ${key}` } })

  await openmeter.events.ingest({
    id: 'single',
    type: 'llm.request',
    subject: org,
    data: { model: 'small', usage: { total_tokens: '0.5' } },
  })
  await openmeter.events.ingest([
    { id: 'several', source: 'gateway', type: 'llm.request', subject: org, time: new Date(), data: { usage: { total_tokens: 0.25 } } },
  ])
}
