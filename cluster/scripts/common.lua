local p = KEYS[1] .. ':'

local function now() -- milliseconds, of Redis's clock
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Tells all nodes what has happened, numbered, so that one who misses something notices.
local function tell(event)
    local number = redis.call('INCR', p .. 'events')
    redis.call('PUBLISH', p .. 'presence', number .. ' ' .. event)
    return number
end

local function holder(id)
    local held = redis.call('HGET', p .. 'online', id)
    return held and string.match(held, '^%S+')
end

local function put_online(node, id, name)
    redis.call('HSET', p .. 'online', id, node .. ' ' .. name)
    redis.call('SADD', p .. 'node:' .. node, id)
    return tell('+ ' .. id .. ' ' .. node .. ' ' .. name)
end

local function put_offline(node, id)
    redis.call('SREM', p .. 'node:' .. node, id)
    if holder(id) == node then
        redis.call('HDEL', p .. 'online', id)
        return tell('- ' .. id .. ' ' .. node)
    end
    return 0
end

local function end_node(node)
    for _, id in ipairs(redis.call('SMEMBERS', p .. 'node:' .. node)) do
        if holder(id) == node then
            redis.call('HDEL', p .. 'online', id)
        end
    end
    redis.call('DEL', p .. 'node:' .. node)
    redis.call('HDEL', p .. 'epochs', node)
    redis.call('ZREM', p .. 'nodes', node)
    tell('x ' .. node)
end
