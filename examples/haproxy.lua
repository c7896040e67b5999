-- What haproxy.cfg calls lua.orgd: it asks orgd about the request at hand, and
-- either says to the product whose request it is or answers in orgd's place. The
-- variable txn.orgd holds what is demanded, as the query of /forward_auth.

local identity = {"x-orgd-org-id", "x-orgd-root-id", "x-orgd-path", "x-orgd-key-id", "x-orgd-permissions"}

-- What a client gets of an answer of orgd that lets it not through.
local told = {"content-type", "www-authenticate", "retry-after", "x-orgd-code"}

-- values returns those that a header has, as a list from 1. HAProxy counts them
-- from 0.
local function values(headers, name)
	local list = {}
	local v = headers[name] and headers[name][0]
	while v do
		list[#list + 1] = v
		v = headers[name][#list]
	end
	return list
end

local function answer(txn, status, headers, body)
	local reply = txn:reply{status = status}
	for _, h in ipairs(headers) do
		reply:add_header(h[1], h[2])
	end
	reply:set_body(body)
	txn:done(reply)
end

local function unavailable(txn)
	answer(txn, 503, {{"content-type", "application/problem+json"}}, '{"status":503,"code":"unavailable","title":"Temporarily unavailable"}')
end

local function decide(txn)
	local demand = txn:get_var("txn.orgd")
	if not demand then
		return unavailable(txn)
	end
	local headers = txn.http:req_get_headers()
	-- Nothing else of the request is for orgd.
	local asked = {
		["x-original-method"] = {txn.f:method()},
		["x-original-uri"] = {txn.f:pathq()},
		["x-forwarded-for"] = {txn.f:src()},
	}
	for _, name in ipairs{"authorization", "user-agent", "x-request-id"} do
		asked[name] = values(headers, name)
	end
	local said = core.httpclient():get{
		url = "http://orgd/forward_auth?" .. demand,
		headers = asked,
		dst = "abns@orgd",
		timeout = 10000,
	}
	if not said or not said.headers then
		return unavailable(txn)
	end
	local who = {}
	for i, name in ipairs(identity) do
		who[i] = values(said.headers, name)[1]
	end
	if said.status == 200 and #who == #identity then
		for i, name in ipairs(identity) do
			txn.http:req_set_header(name, who[i])
		end
		-- The product does not need the key.
		txn.http:req_del_header("authorization")
		return
	end
	if said.status < 400 or not values(said.headers, "x-orgd-code")[1] then
		return unavailable(txn)
	end
	local fields = {}
	for _, name in ipairs(told) do
		for _, v in ipairs(values(said.headers, name)) do
			fields[#fields + 1] = {name, v}
		end
	end
	answer(txn, said.status, fields, said.body)
end

core.register_action("orgd", {"http-req"}, decide)
