-- What apache.conf calls: clean, for every request, and decide, where orgd is to
-- be asked. The variable orgd in the request's environment holds what is demanded,
-- as the query of /forward_auth.

local socket = require "socket"

local host, port = ("127.0.0.1:8081"):match("^(.*):(%d+)$")

-- A decision takes milliseconds. If orgd does not answer, nothing is let through,
-- and a client need not wait for that: seconds.
local patience = 3

local identity = {"X-Orgd-Org-Id", "X-Orgd-Root-Id", "X-Orgd-Path", "X-Orgd-Key-Id", "X-Orgd-Permissions"}

-- What a client gets of an answer of orgd that lets it not through, besides its
-- Content-Type.
local told = {"WWW-Authenticate", "Retry-After", "X-Orgd-Code"}

-- target returns path and query of a request as they came.
local function target(r)
	return (r.unparsed_uri:gsub("^%a[%w+.-]*://[^/?]*", ""))
end

-- clean makes of a request what every location below may rely on.
function clean(r)
	-- Apache chooses a location by the path as it is when cleaned and decoded, and
	-- passes on the path as it came. So that both are the same place, also for a
	-- product that cleans or decodes it again, a path is refused that has an empty
	-- segment, a segment "." or "..", a backslash, a path parameter, an encoded dot,
	-- slash, backslash or semicolon, or a control character. A path parameter is
	-- what some products leave out: /admin;x is /admin for them.
	if r:regex(target(r), [[(?i)^[^?]*(//|/\.\.?([/?]|$)|[\\;#]|%(25)*(2e|2f|5c|3b|[01][0-9a-f]|7f|c[01]|e0%(25)*[89]|f0%(25)*8))]]) then
		return 400
	end
	-- Who a request is of, a product must learn from orgd or not at all. What a
	-- client sends under these names, or with _ for - in them, goes no further, and
	-- Connection names nothing that Apache is to leave out.
	for name in pairs(r:headers_in_table()) do
		if name:lower():find("orgd", 1, true) then
			r.headers_in[name] = nil
		end
	end
	-- What a connection becomes that is upgraded, nobody decides about. A WebSocket is
	-- what it was opened for; h2c would be any number of requests.
	if (r.headers_in["Upgrade"] or ""):lower() ~= "websocket" then
		r.headers_in["Upgrade"] = nil
	end
	local kept = {}
	for token in (r.headers_in["Connection"] or ""):lower():gmatch("[^%s,]+") do
		if token == "close" or token == "keep-alive" or token == "upgrade" then
			kept[#kept + 1] = token
		end
	end
	r.headers_in["Connection"] = #kept > 0 and table.concat(kept, ", ") or nil
	return apache2.DECLINED
end

-- ask returns status, headers and body of orgd's answer, or nothing. Of an answer
-- in HTTP/1.0 the end of the connection is the end.
local function ask(r, demand)
	local deadline = socket.gettime() + patience
	local lines = {"GET /forward_auth?" .. demand .. " HTTP/1.0", "Host: orgd", "X-Original-Method: " .. r.method, "X-Original-URI: " .. target(r), "X-Forwarded-For: " .. r.useragent_ip}
	-- Nothing else of the request is for orgd. Apache lets no line break through in
	-- what a client sends.
	for _, name in ipairs{"Authorization", "User-Agent", "X-Request-Id"} do
		local value = r.headers_in[name]
		if value then
			lines[#lines + 1] = name .. ": " .. value
		end
	end
	local c = socket.tcp()
	c:settimeout(1)
	local ok = c:connect(host, port) and c:send(table.concat(lines, "\r\n") .. "\r\n\r\n")
	local function read(what)
		c:settimeout(math.max(deadline - socket.gettime(), 0))
		return c:receive(what)
	end
	local status = tonumber((ok and read("*l") or ""):match("^HTTP/1%.%d (%d%d%d)"))
	local headers = {}
	local line = status and read("*l")
	while line and line ~= "" do
		local name, value = line:match("^([^:]+):%s*(.-)%s*$")
		if name then
			headers[name:lower()] = value
		end
		line = read("*l")
	end
	local body, why, part
	if line then
		body, why, part = read("*a")
	end
	c:close()
	if body or why == "closed" then
		return status, headers, body or part
	end
end

-- answer sends what a client gets whose request was not let through.
local function answer(r, status, headers, body)
	-- The body that the request may have has not been read.
	r.subprocess_env["nokeepalive"] = "1"
	r.status = status
	r.content_type = headers["content-type"]
	for _, name in ipairs(told) do
		r.err_headers_out[name] = headers[name:lower()]
	end
	r:write(body)
	return apache2.DONE
end

-- decide lets a request through with what orgd says of whose it is, or answers in
-- orgd's place.
function decide(r)
	local demand = r.subprocess_env["orgd"]
	local status, headers, body
	if demand and demand ~= "" then
		status, headers, body = ask(r, demand)
	end
	if status == 200 and headers["x-orgd-org-id"] then
		for _, name in ipairs(identity) do
			r.headers_in[name] = headers[name:lower()]
		end
		-- The product does not need the key.
		r.headers_in["Authorization"] = nil
		return apache2.OK
	end
	if status and status >= 400 and headers["x-orgd-code"] then
		return answer(r, status, headers, body)
	end
	return answer(r, 503, {["content-type"] = "application/problem+json"}, '{"status":503,"code":"unavailable","title":"Temporarily unavailable"}')
end
