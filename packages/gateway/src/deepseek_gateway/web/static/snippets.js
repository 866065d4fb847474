// The request of the playground as code that runs elsewhere. The key stays a variable: code gets pasted into chats.

/** A command for a shell. */
export function curlOf(baseUrl, request) {
  const body = JSON.stringify(request, null, 2).replaceAll("'", "'\\''");
  return [
    `curl -N ${baseUrl}/v1/chat/completions \\`,
    `  -H "Authorization: Bearer $DEEPSEEK_API_KEY" \\`,
    `  -H "Content-Type: application/json" \\`,
    `  -d '${body}'`,
  ].join("\n");
}

/** A program with OpenAI's package. */
export function pythonOf(baseUrl, request) {
  const { thinking, stream, ...known } = request;
  const fields = Object.entries({ model: "default", ...known }).map(([name, value]) => `    ${name}=${python(value, 4)},`);
  const extra = thinking ? [`    extra_body={"thinking": ${python(thinking, 4)}},`] : [];
  return [
    "import os",
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${python(`${baseUrl}/v1`)}, api_key=os.environ["DEEPSEEK_API_KEY"])`,
    "stream = client.chat.completions.create(",
    ...fields,
    ...extra,
    "    stream=True,",
    ")",
    "for chunk in stream:",
    "    if chunk.choices:",
    '        print(chunk.choices[0].delta.content or "", end="", flush=True)',
  ].join("\n");
}

/** A JSON value as Python writes it. */
function python(value, indent = 0) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) {
    const inner = value.map((item) => `${" ".repeat(indent + 4)}${python(item, indent + 4)},`);
    return value.length ? `[\n${inner.join("\n")}\n${" ".repeat(indent)}]` : "[]";
  }
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${python(item, indent)}`).join(", ")}}`;
  }
  return JSON.stringify(value); // a JSON string or number is a Python one too
}
