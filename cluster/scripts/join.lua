-- node, lease in ms, is new (1) or not (0), ms in which it may still write mail, number of users whose mail that is, their ids,
-- then id and name of all users online at it
-- -> {} if its lease has run out, else {epoch, ids of users who are online elsewhere by now ...}
local node, new = ARGV[1], ARGV[3] == '1'
if not new and not redis.call('ZSCORE', p .. 'nodes', node) then
    return {}
end
if redis.call('EXISTS', p .. 'migrating') == 1 then
    return redis.error_reply('ERR a migration of this database is under way, or was broken off: run admin.py migrate again')
end
redis.call('ZADD', p .. 'nodes', now() + ARGV[2], node)
local answer = {redis.call('HINCRBY', p .. 'epochs', node, 1)} -- earlier requests are void
local there = {}
local settling = {}
for i = 6, 5 + ARGV[5] do
    settling[ARGV[i]] = true
    begin_settling(node, ARGV[i], ARGV[4])
end
for _, id in ipairs(redis.call('SMEMBERS', p .. 'settles:' .. node)) do
    if not settling[id] then
        end_settling(node, id)
    end
end
for i = 6 + ARGV[5], #ARGV, 2 do
    local id, name = ARGV[i], ARGV[i + 1]
    local held = holder(id)
    there[id] = true
    if not held and redis.call('HGET', p .. 'users', id) == name then
        put_online(node, id, name)
    elseif held ~= node then
        table.insert(answer, tonumber(id))
    end
end
for _, id in ipairs(redis.call('SMEMBERS', p .. 'node:' .. node)) do
    if not there[id] then
        put_offline(node, id)
    end
end
return answer
